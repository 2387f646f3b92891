-- As extend.sql, for several keys: all of them, or none. No row: not all are ours any more.
--
-- $1 keys, $2 owner token, $3 ttl in us
WITH mine AS MATERIALIZED (
    SELECT key FROM polylock_lease
    WHERE key = ANY ($1::text[]) AND owner = $2 AND expires_at > clock_timestamp()
    ORDER BY key FOR UPDATE
), extended AS (
    UPDATE polylock_lease AS l SET expires_at = clock_timestamp() + $3 * interval '1 microsecond'
    FROM mine WHERE l.key = mine.key AND (SELECT count(*) FROM mine) = cardinality($1)
    RETURNING CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
)
SELECT true FROM extended LIMIT 1
