-- Takes the advisory lock shared: for a shared lease, or before one of the permits of a semaphore.
--
-- $1 key, $2 owner token, $3 id of the advisory lock, $4 host, $5 pid, $6 label, $7 whether to ask for a NOTIFY, $8 ttl in us,
-- $9 shared or permit, $10 whether to take the lock (else this session holds it)
--
-- One row: ok, token, asked, kind as of acquire.sql; fresh (the row was missing, and is there now: ask again).
--
-- Who shares and who has a permit share one advisory lock, and exclude each other by `kind`: it changes only under the lock
-- of the row, and only when the advisory lock is free, which is found out by locking it alone for a moment: it ends before the
-- lock of the row, so that it stands in the way of nobody who waited for that.
-- Nobody waits for an advisory lock while holding the row's. CASE, because a condition of ANDs has no order.
WITH taken AS (
    INSERT INTO polylock_session AS l (key, token, lock_id)
    VALUES ($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, $3)
    ON CONFLICT (key) DO UPDATE SET (
        token, sharers, kind, lock_id, owner, backend, acquired_at, expires_at, host, pid, label
    ) = (
        SELECT mine.token,
               CASE WHEN $9 = 'shared' THEN coalesce(others.all, '{}') || jsonb_build_object($2, jsonb_build_object(
                   'until', mine.now + $8, 'since', mine.now, 'token', mine.token, 'host', $4, 'pid', $5, 'label', $6,
                   'backend', pg_backend_pid())) ELSE others.all END,
               $9, $3, $2, pg_backend_pid(), clock_timestamp(), clock_timestamp() + $8 * interval '1 microsecond',
               $4, $5, $6
        FROM (
            SELECT now, greatest(l.token + 1, now) AS token
            FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now) AS clock
        ) AS mine, LATERAL (
            SELECT jsonb_object_agg(other.key, other.value) AS all FROM jsonb_each(l.sharers) AS other
            WHERE l.kind = $9 AND (other.value ->> 'until')::bigint > mine.now
        ) AS others
    )
    WHERE CASE
        WHEN $9 = 'shared' AND l.writer_until > clock_timestamp() THEN false
        WHEN NOT $10 THEN true
        WHEN l.kind = $9 THEN pg_try_advisory_lock_shared(advisory($3))
        WHEN pg_try_advisory_lock(advisory($3)) THEN
            CASE WHEN pg_try_advisory_lock_shared(advisory($3)) THEN pg_advisory_unlock(advisory($3)) END
        ELSE false
    END
    RETURNING token, owner,
        CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), asked AS (
    UPDATE polylock_session AS l SET wanted = true
    WHERE $7 AND NOT EXISTS (SELECT 1 FROM taken) AND l.key = $1 AND NOT l.wanted
    RETURNING set_config('synchronous_commit', 'off', true) AS done
)
SELECT coalesce(taken.owner = $2, false) AS ok, taken.token, asked.done IS NOT NULL AS asked,
       (SELECT kind FROM polylock_session WHERE key = $1) AS kind,
       taken.token IS NOT NULL AND taken.owner IS NULL AS fresh
FROM (VALUES (1)) AS one LEFT JOIN taken ON true LEFT JOIN asked ON true
