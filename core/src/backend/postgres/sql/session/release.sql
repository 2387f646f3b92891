-- Frees the advisory lock, and tells who waits for it. One row with whether it was held.
--
-- $1 key, $2 id of the advisory lock
WITH freed AS MATERIALIZED (
    SELECT pg_advisory_unlock(advisory($2)) AS ok
), told AS (
    UPDATE polylock_session AS l SET wanted = false FROM freed
    WHERE l.key = $1 AND l.wanted AND freed.ok
    RETURNING pg_notify('polylock', l.key)::text, set_config('synchronous_commit', 'off', true)
)
SELECT freed.ok FROM freed
