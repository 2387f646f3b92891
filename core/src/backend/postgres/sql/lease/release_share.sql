-- As release.sql, for one of those in `sharers`.
--
-- $1 key, $2 owner token
--
-- That it was held is read before; a grant that was committed only after that, and is freed here, was not old.
WITH seen AS MATERIALIZED (
    SELECT (sharers -> $2 ->> 'until')::bigint > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS was_held
    FROM polylock_lease WHERE key = $1
), freed AS (
    INSERT INTO polylock_lease AS l (key, token, expires_at)
    VALUES ($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 'epoch')
    ON CONFLICT (key) DO UPDATE SET (owner, sharers, expires_at) = (
        SELECT CASE WHEN count(*) > 0 THEN l.owner END, CASE WHEN count(*) > 0 THEN l.sharers - $2 END,
               'epoch'::timestamptz + coalesce(max((other.value ->> 'until')::bigint), 0) * interval '1 microsecond'
        FROM jsonb_each(l.sharers - $2) AS other
        WHERE (other.value ->> 'until')::bigint > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    )
    WHERE l.owner IN ('shared', 'permit') AND l.sharers ? $2
    RETURNING token,
        CASE WHEN wanted THEN pg_notify('polylock', key)::text END,
        set_config('synchronous_commit', 'off', true)
)
SELECT coalesce((SELECT was_held FROM seen), EXISTS (SELECT 1 FROM polylock_lease WHERE key = $1)) AS was_held FROM freed
