-- As acquire.sql, for several: all of them, or none.
--
-- $1 keys, sorted; $2 owner token, $3 ids of the advisory locks in the same order, $4 to $8 as there
--
-- One row: ok, token (the greatest), same (all rows have that token, else the caller raises them), asked, kind.
WITH RECURSIVE tried (place, ok) AS (
    SELECT 1, pg_try_advisory_lock(advisory(($3::bigint[])[1]))
    UNION ALL
    SELECT place + 1, pg_try_advisory_lock(advisory(($3::bigint[])[place + 1]))
    FROM tried WHERE ok AND place < cardinality($3)
), got AS MATERIALIZED (
    SELECT bool_and(ok) AS ok FROM tried
), undone AS MATERIALIZED (
    SELECT count(pg_advisory_unlock(advisory(($3::bigint[])[tried.place]))) AS count
    FROM tried, got WHERE tried.ok AND NOT got.ok
), next AS MATERIALIZED (
    SELECT greatest(max(token) + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS token
    FROM polylock_session WHERE key = ANY ($1::text[])
), taken AS (
    INSERT INTO polylock_session AS l (
        key, token, kind, lock_id, owner, backend, acquired_at, expires_at, host, pid, label)
    SELECT wish.key, (SELECT token FROM next), 'exclusive', wish.id, $2, pg_backend_pid(),
           clock_timestamp(), clock_timestamp() + $8 * interval '1 microsecond', $4, $5, $6
    FROM got, unnest($1::text[], $3::bigint[]) WITH ORDINALITY AS wish (key, id, place)
    WHERE got.ok ORDER BY wish.place
    ON CONFLICT (key) DO UPDATE SET
        -- The greatest that was seen may be older than the lock.
        token = greatest(l.token + 1, excluded.token),
        kind = 'exclusive', lock_id = excluded.lock_id, owner = $2, backend = pg_backend_pid(),
        acquired_at = clock_timestamp(), expires_at = clock_timestamp() + $8 * interval '1 microsecond',
        host = $4, pid = $5, label = $6, sharers = NULL, writer_until = NULL, wanted = false
    RETURNING token,
        CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), seen AS MATERIALIZED (
    SELECT key, kind, wanted,
           kind = 'shared' AND coalesce(writer_until < clock_timestamp() + interval '0.35 s', true) AS keep_out
    FROM polylock_session, got WHERE key = ANY ($1::text[]) AND NOT got.ok
), wish AS MATERIALIZED (
    -- In order, as all that lock several rows, so that nobody waits in a circle.
    SELECT l.key, l.wanted, seen.keep_out FROM polylock_session AS l JOIN seen USING (key)
    WHERE $7 AND NOT l.wanted OR seen.keep_out
    ORDER BY l.key FOR UPDATE OF l
), asked AS (
    UPDATE polylock_session AS l SET
        wanted = l.wanted OR $7,
        writer_until = CASE WHEN wish.keep_out THEN clock_timestamp() + interval '0.6 s' ELSE l.writer_until END
    FROM wish WHERE l.key = wish.key
    RETURNING $7 AND NOT wish.wanted AS now, set_config('synchronous_commit', 'off', true)
)
SELECT got.ok AND undone.count = 0 AS ok,
       (SELECT max(token) FROM taken) AS token,
       (SELECT min(token) = max(token) FROM taken) AS same,
       coalesce((SELECT bool_or(now) FROM asked), false) AS asked,
       NULL::text AS kind
FROM got, undone
