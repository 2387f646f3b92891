-- Who holds it: one row for each. No row: nobody.
--
-- $1 key, or a pattern of LIKE: then `key = $1` is `key LIKE $1`; $2 the most rows
--
-- The key is cast so that what was prepared goes on when somebody alters its type or its order.
SELECT * FROM (
    SELECT key::text COLLATE "C" AS key, 'exclusive' AS kind, owner, token,
           (extract(epoch FROM expires_at - clock_timestamp()) * 1000000)::bigint AS us_left,
           (extract(epoch FROM acquired_at) * 1000000)::bigint AS since, host, pid, label
    FROM polylock_lease WHERE key = $1 AND owner NOT IN ('shared', 'permit')
    UNION ALL
    SELECT l.key::text COLLATE "C", l.owner, sharer.key, (sharer.value ->> 'token')::bigint,
           (sharer.value ->> 'until')::bigint - (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,
           (sharer.value ->> 'since')::bigint, sharer.value ->> 'host', (sharer.value ->> 'pid')::integer,
           sharer.value ->> 'label'
    FROM (SELECT * FROM polylock_lease WHERE key = $1 AND owner IN ('shared', 'permit')) AS l,
         jsonb_each(l.sharers) AS sharer
) AS holder
WHERE us_left > 0 ORDER BY us_left DESC LIMIT $2
