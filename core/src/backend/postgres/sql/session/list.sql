-- As holders.sql, for all names that match.
--
-- $1 pattern of LIKE, $2 objsubid: 1 for one number, 2 for a pair; $3 the most rows
--
-- The key is cast so that what was prepared goes on when somebody alters its type or its order.
SELECT known.key::text COLLATE "C" AS key, CASE held.mode WHEN 'ExclusiveLock' THEN 'exclusive' ELSE coalesce(known.kind, 'shared') END AS kind,
       coalesce(holder.owner, 'backend ' || held.pid || ' ' || coalesce(activity.application_name, '')) AS owner,
       holder.token, holder.us_left, holder.since, holder.host, holder.pid, holder.label
FROM (
    SELECT pid, mode, classid::bigint << 32 | objid::bigint AS id FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND objsubid = $2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
) AS held
JOIN polylock_session AS known ON known.lock_id = held.id AND known.key LIKE $1
LEFT JOIN pg_stat_activity AS activity ON activity.pid = held.pid
LEFT JOIN LATERAL (
    SELECT known.owner, known.token, (extract(epoch FROM known.expires_at - clock_timestamp()) * 1000000)::bigint AS us_left,
           (extract(epoch FROM known.acquired_at) * 1000000)::bigint AS since, known.host, known.pid, known.label
    WHERE held.mode = 'ExclusiveLock' AND known.backend = held.pid
    UNION ALL
    SELECT sharer.key, (sharer.value ->> 'token')::bigint,
           (sharer.value ->> 'until')::bigint - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
           (sharer.value ->> 'since')::bigint, sharer.value ->> 'host', (sharer.value ->> 'pid')::integer,
           sharer.value ->> 'label'
    FROM jsonb_each(known.sharers) AS sharer
    WHERE held.mode = 'ShareLock' AND (sharer.value ->> 'backend')::integer = held.pid
) AS holder ON true
LIMIT $3
