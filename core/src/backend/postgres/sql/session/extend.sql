-- Says that the holder means to hold it for $3 us more. That it is answered at all proves that the session lives and holds.
--
-- $1 keys, $2 owner token, $3 ttl in us
WITH mine AS MATERIALIZED (
    SELECT key FROM polylock_session
    WHERE key = ANY ($1::text[]) AND (owner = $2 OR sharers ? $2) ORDER BY key FOR UPDATE
), extended AS (
    UPDATE polylock_session AS l SET
        expires_at = CASE WHEN owner = $2 THEN clock_timestamp() + $3 * interval '1 microsecond' ELSE expires_at END,
        sharers = CASE WHEN sharers ? $2 THEN jsonb_set(sharers, ARRAY[$2, 'until'],
            to_jsonb((extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $3)) ELSE sharers END
    FROM mine WHERE l.key = mine.key
    RETURNING set_config('synchronous_commit', 'off', true)
)
SELECT count(*) FROM extended
