-- As acquire.sql, for several keys: all of them, or none.
--
-- $1 keys, sorted; $2 to $8 as there. One row as there: token is one for all; held, kind, us_left and asked are of the keys
-- that are held.
--
-- A key that is taken between the look at all of them and the taking of all ends the statement with an error (22P02),
-- so that nothing of it stays. So does a counter that grew in between: the token is counted from what was seen. They are
-- locked in order, also where only a wish is written, so that nobody waits in a circle.
WITH seen AS MATERIALIZED (
    SELECT key, token, owner, expires_at, wanted,
           owner IS NOT NULL AND owner <> $2 AND expires_at > clock_timestamp() AS held,
           owner = 'shared' AND coalesce(writer_until < clock_timestamp() + interval '0.35 s', true) AS keep_out
    FROM polylock_lease WHERE key = ANY ($1::text[])
), next AS MATERIALIZED (
    SELECT greatest(max(token) + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS token FROM seen
), taken AS (
    INSERT INTO polylock_lease AS l (key, token, owner, expires_at, acquired_at, host, pid, label)
    SELECT wish.key, (SELECT token FROM next), $2,
           clock_timestamp() + $3 * interval '1 microsecond', clock_timestamp(), $5, $6, $7
    FROM unnest($1::text[]) WITH ORDINALITY AS wish (key, place)
    WHERE NOT EXISTS (SELECT 1 FROM seen WHERE held)
      AND (extract(epoch FROM clock_timestamp()) * 1000000)::bigint <= $4
    ORDER BY wish.place
    ON CONFLICT (key) DO UPDATE SET
        token = CASE WHEN l.owner = $2 THEN l.token ELSE excluded.token END,
        owner = $2, sharers = NULL, writer_until = NULL,
        expires_at = clock_timestamp() + $3 * interval '1 microsecond',
        acquired_at = CASE WHEN l.owner = $2 THEN l.acquired_at ELSE clock_timestamp() END,
        host = $5, pid = $6, label = $7, wanted = false
    WHERE (l.owner = $2 OR (l.owner IS NULL OR l.expires_at <= clock_timestamp()) AND l.token < excluded.token)
      AND (extract(epoch FROM clock_timestamp()) * 1000000)::bigint <= $4
    RETURNING token,
        CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), wish AS MATERIALIZED (
    SELECT l.key, seen.keep_out FROM polylock_lease AS l JOIN seen USING (key)
    WHERE seen.held AND ($8 AND NOT seen.wanted OR seen.keep_out)
      AND l.owner = seen.owner AND l.expires_at > clock_timestamp()
    ORDER BY l.key FOR UPDATE OF l
), asked AS (
    UPDATE polylock_lease AS l SET
        wanted = l.wanted OR $8,
        writer_until = CASE WHEN wish.keep_out THEN clock_timestamp() + interval '0.6 s' ELSE l.writer_until END
    FROM wish WHERE l.key = wish.key
    RETURNING l.key, set_config('synchronous_commit', 'off', true) AS done
), granted AS (
    -- The token of this attempt is the same in each row; two of them, or too few rows, are what came in between.
    SELECT max(token) AS token,
           CASE WHEN count(*) NOT IN (0, cardinality($1)) OR min(token) <> max(token)
                THEN ('polylock: others came in between ' || count(*))::integer END AS none_of_them
    FROM taken
), busy AS (
    SELECT count(*) > 0 AS held, max(seen.owner) FILTER (WHERE seen.owner IN ('shared', 'permit')) AS kind,
           max(seen.expires_at) AS expires_at, bool_and(seen.wanted OR asked.done IS NOT NULL) AS asked
    FROM seen LEFT JOIN asked ON asked.key = seen.key WHERE seen.held
)
SELECT granted.token, granted.none_of_them, busy.held, coalesce(busy.kind, 'exclusive') AS kind,
       (extract(epoch FROM busy.expires_at - clock_timestamp()) * 1000000)::bigint AS us_left,
       coalesce(busy.asked, false) AS asked,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
FROM granted, busy
