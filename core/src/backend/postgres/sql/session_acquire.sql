-- Takes the advisory lock if it is free, and counts the fencing token up while holding it.
--
-- $1 key, $2 owner token, $3 id of the advisory lock, $4 host, $5 pid, $6 label, $7 whether to ask for a NOTIFY, $8 ttl in us
--
-- One row: ok (the lock was taken), token, asked (only now has somebody asked for a NOTIFY).
--
-- An error leaves the advisory lock as it is: the caller unlocks. The client sees to it that this session does not
-- hold the id already, which the server would grant again.
WITH got AS MATERIALIZED (
    SELECT pg_try_advisory_lock($3) AS ok
), taken AS (
    INSERT INTO polylock_session AS l (key, token, owner, backend, acquired_at, expires_at, host, pid, label)
    SELECT $1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, $2, pg_backend_pid(), clock_timestamp(),
           clock_timestamp() + $8 * interval '1 microsecond', $4, $5, $6
    FROM got WHERE ok
    ON CONFLICT (key) DO UPDATE SET
        token = greatest(l.token + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint),
        owner = $2, backend = pg_backend_pid(), acquired_at = clock_timestamp(),
        expires_at = clock_timestamp() + $8 * interval '1 microsecond', host = $4, pid = $5, label = $6, wanted = false
    -- A token that a crash of the server forgets would be given twice.
    RETURNING token,
        CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), asked AS (
    UPDATE polylock_session AS l SET wanted = true FROM got
    WHERE $7 AND NOT got.ok AND l.key = $1 AND NOT l.wanted
    RETURNING set_config('synchronous_commit', 'off', true) AS done
)
SELECT got.ok, taken.token, asked.done IS NOT NULL AS asked
FROM got LEFT JOIN taken ON true LEFT JOIN asked ON true
