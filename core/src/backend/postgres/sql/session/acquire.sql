-- Takes the advisory lock if it is free, and counts the fencing token up while holding it.
--
-- $1 key, $2 owner token, $3 id of the advisory lock, $4 host, $5 pid, $6 label, $7 whether to ask for a NOTIFY, $8 ttl in us
--
-- One row: ok (the lock was taken), token, asked (only now has somebody asked for a NOTIFY), kind (as which it is held).
--
-- An error leaves the advisory lock as it is: the caller unlocks. The client sees to it that this session does not
-- hold the id already, which the server would grant again.
WITH got AS MATERIALIZED (
    SELECT pg_try_advisory_lock(advisory($3)) AS ok
), taken AS (
    INSERT INTO polylock_session AS l (
        key, token, kind, lock_id, owner, backend, acquired_at, expires_at, host, pid, label)
    SELECT $1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 'exclusive', $3, $2, pg_backend_pid(),
           clock_timestamp(), clock_timestamp() + $8 * interval '1 microsecond', $4, $5, $6
    FROM got WHERE ok
    ON CONFLICT (key) DO UPDATE SET
        token = greatest(l.token + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint),
        kind = 'exclusive', lock_id = $3, owner = $2, backend = pg_backend_pid(), acquired_at = clock_timestamp(),
        expires_at = clock_timestamp() + $8 * interval '1 microsecond', host = $4, pid = $5, label = $6,
        sharers = NULL, writer_until = NULL, wanted = false
    -- A token that a crash of the server forgets would be given twice.
    RETURNING token,
        CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), seen AS MATERIALIZED (
    SELECT kind, wanted,
           -- Who shares it lets us go first, for as long as we keep asking.
           kind = 'shared' AND coalesce(writer_until < clock_timestamp() + interval '0.35 s', true) AS keep_out
    FROM polylock_session, got WHERE key = $1 AND NOT got.ok
), asked AS (
    UPDATE polylock_session AS l SET
        wanted = l.wanted OR $7,
        writer_until = CASE WHEN seen.keep_out THEN clock_timestamp() + interval '0.6 s' ELSE l.writer_until END
    FROM seen
    WHERE l.key = $1 AND ($7 AND NOT l.wanted OR seen.keep_out)
    RETURNING $7 AND NOT seen.wanted AS now, set_config('synchronous_commit', 'off', true)
)
SELECT got.ok, taken.token, coalesce(asked.now, false) AS asked, seen.kind
FROM got LEFT JOIN taken ON true LEFT JOIN seen ON true LEFT JOIN asked ON true
