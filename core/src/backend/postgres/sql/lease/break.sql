-- Takes the lease from its holder, or from one of those who share it. No row: it is not theirs any more.
--
-- $1 key, $2 owner token
UPDATE polylock_lease AS l SET (owner, sharers, expires_at) = (
    SELECT CASE WHEN count(*) > 0 THEN l.owner END, CASE WHEN count(*) > 0 THEN l.sharers - $2 END,
           'epoch'::timestamptz + coalesce(max((other.value ->> 'until')::bigint), 0) * interval '1 microsecond'
    FROM jsonb_each(l.sharers) AS other
    WHERE other.key <> $2
      AND (other.value ->> 'until')::bigint > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
)
WHERE key = $1 AND expires_at > clock_timestamp()
  AND (owner = $2 AND sharers IS NULL
       OR (sharers -> $2 ->> 'until')::bigint > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
RETURNING CASE WHEN wanted THEN pg_notify('polylock', key)::text END,
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
