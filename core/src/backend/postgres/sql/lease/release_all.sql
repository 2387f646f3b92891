-- As release.sql, for several keys. One row with whether all were held.
--
-- $1 keys, sorted; $2 owner token
WITH freed AS (
    INSERT INTO polylock_lease AS l (key, token, expires_at)
    SELECT wish.key, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 'epoch'
    FROM unnest($1::text[]) WITH ORDINALITY AS wish (key, place) ORDER BY wish.place
    ON CONFLICT (key) DO UPDATE SET owner = NULL WHERE l.owner = $2
    RETURNING expires_at > clock_timestamp() AS was_held,
        CASE WHEN wanted THEN pg_notify('polylock', key)::text END,
        set_config('synchronous_commit', 'off', true)
)
SELECT count(*) FILTER (WHERE was_held) = cardinality($1) AS was_held FROM freed
