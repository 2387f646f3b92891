-- Who holds the advisory lock. No row: nobody.
--
-- $1 key, $2 and $3 upper and lower half of the id
SELECT coalesce(l.owner, 'backend ' || held.pid || ' ' || coalesce(activity.application_name, '')) AS owner, l.token,
       (extract(epoch FROM l.expires_at - clock_timestamp()) * 1000000)::bigint AS us_left,
       (extract(epoch FROM l.acquired_at) * 1000000)::bigint AS since, l.host, l.pid, l.label
FROM pg_locks AS held
LEFT JOIN polylock_session AS l ON l.key = $1 AND l.backend = held.pid
LEFT JOIN pg_stat_activity AS activity ON activity.pid = held.pid
WHERE held.locktype = 'advisory' AND held.granted AND held.mode = 'ExclusiveLock' AND held.objsubid = 1
  AND held.classid = $2::oid AND held.objid = $3::oid
  AND held.database = (SELECT oid FROM pg_database WHERE datname = current_database())
