-- Ends the session that holds it for this owner. One row with whether there was one.
--
-- $1 key, $2 owner token, $3 id of the advisory lock, $4 objsubid: 1 for one number, 2 for a pair
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
SELECT count(pg_terminate_backend(pid)) > 0 AS ended FROM holder
