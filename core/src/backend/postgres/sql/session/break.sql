-- Takes it from this owner: by a wish, which the session that holds it grants, or by its end. No row: that owner does not hold it.
--
-- $1 key, $2 owner token, $3 id of the advisory lock, $4 objsubid: 1 for one number, 2 for a pair; $5 id of the wish;
-- $6 what to do: wish, wait or end
--
-- One row: pid (of the session), wished (from now on this session has the wish, until it unlocks it).
--
-- A wish is two shared locks: of $5, and of 1886350457 with the pid, for which the heartbeat of that session looks.
--
-- The row is locked: who has the lock in the same session by now, after that owner, has written so, or is waited for.
WITH holder AS MATERIALIZED (
    SELECT held.pid
    FROM pg_locks AS held, polylock_session AS l
    WHERE l.key = $1 AND held.locktype = 'advisory' AND held.granted AND held.objsubid = $4
      AND (held.classid::bigint << 32 | held.objid::bigint) = $3
      AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (held.mode = 'ExclusiveLock' AND l.owner = $2 AND l.backend = held.pid
           OR held.mode = 'ShareLock' AND (l.sharers -> $2 ->> 'backend')::integer = held.pid)
    FOR UPDATE OF l
)
SELECT pid, CASE $6
    WHEN 'wish' THEN CASE
        WHEN NOT pg_try_advisory_lock_shared($5) THEN false
        WHEN pg_try_advisory_lock_shared(1886350457, pid) THEN true
        ELSE NOT pg_advisory_unlock_shared($5)
    END
    WHEN 'end' THEN NOT pg_terminate_backend(pid)
    ELSE false
END AS wished
FROM holder LIMIT 1
