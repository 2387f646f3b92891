-- Claims a resource for the holder with a fencing token, in a transaction of the caller's: what that reads and writes
-- afterwards is the work of no stale holder. If a later holder has been here, this is an error (22P02), so that the
-- transaction cannot commit. Until it ends, the claim of a later holder waits.
--
-- $1 resource, $2 fencing token
WITH claimed AS (
    INSERT INTO polylock_claim AS c (resource, token) VALUES ($1::text, $2::bigint)
    ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE c.token <= excluded.token
    RETURNING token
)
SELECT CASE (SELECT count(*) FROM claimed) WHEN 1 THEN $2::bigint
    -- What is counted has it evaluated when it is due, not before.
    ELSE ('polylock: stale fencing token ' || $2::text || ' of ' || $1::text
          || repeat(' ', (SELECT count(*) FROM claimed)::integer))::bigint END AS token
