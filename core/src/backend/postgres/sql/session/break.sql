-- Ends the session that holds it for this owner. One row with whether there was one.
--
-- $1 key, $2 owner token, $3 id of the advisory lock, $4 objsubid: 1 for one number, 2 for a pair
SELECT count(pg_terminate_backend(held.pid)) > 0 AS ended
FROM pg_locks AS held, polylock_session AS l
WHERE l.key = $1 AND held.locktype = 'advisory' AND held.granted AND held.objsubid = $4
  AND (held.classid::bigint << 32 | held.objid::bigint) = $3
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND (held.mode = 'ExclusiveLock' AND l.owner = $2 AND l.backend = held.pid
       OR held.mode = 'ShareLock' AND (l.sharers -> $2 ->> 'backend')::integer = held.pid)
