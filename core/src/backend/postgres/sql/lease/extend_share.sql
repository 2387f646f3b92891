-- As extend.sql, for one of those in `sharers`.
--
-- $1 key, $2 owner token, $3 ttl in us
UPDATE polylock_lease AS l SET (sharers, expires_at) = (
    SELECT jsonb_set(l.sharers, ARRAY[$2, 'until'], to_jsonb(mine.until)),
           'epoch'::timestamptz + greatest(mine.until, (
               SELECT max((other.value ->> 'until')::bigint) FROM jsonb_each(l.sharers) AS other WHERE other.key <> $2
           )) * interval '1 microsecond'
    FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $3 AS until) AS mine
)
WHERE key = $1 AND owner IN ('shared', 'permit')
  AND (sharers -> $2 ->> 'until')::bigint > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
RETURNING true,
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
