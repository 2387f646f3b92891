-- As release.sql, for all that one claim has, or may have.
--
-- $1 keys; ids of the advisory locks: $2 held alone, $3 shared, $4 permits; $5 owner token. One row with whether all were held; of several
-- permits, among which one was to be taken, those that are not held do not count.
WITH freed AS MATERIALIZED (
    SELECT pg_advisory_unlock(advisory(lock.id)) AS ok FROM unnest($2::bigint[]) AS lock (id)
    UNION ALL
    SELECT pg_advisory_unlock_shared(advisory(lock.id)) FROM unnest($3::bigint[]) AS lock (id)
    UNION ALL
    SELECT pg_advisory_unlock(lock.id) FROM unnest($4::bigint[]) AS lock (id)
    WHERE cardinality($4) = 1 OR lock.id IN (
        SELECT held.classid::bigint << 32 | held.objid::bigint FROM pg_locks AS held
        WHERE held.locktype = 'advisory' AND held.pid = pg_backend_pid() AND held.objsubid = 1)
), known AS MATERIALIZED (
    SELECT key, wanted AND EXISTS (SELECT 1 FROM freed WHERE ok) AS tell FROM polylock_session
    WHERE key = ANY ($1::text[]) ORDER BY key FOR UPDATE
), told AS (
    UPDATE polylock_session AS l SET wanted = l.wanted AND NOT known.tell, sharers = l.sharers - $5
    FROM known WHERE l.key = known.key AND (known.tell OR l.sharers ? $5)
    RETURNING CASE WHEN known.tell THEN pg_notify('polylock', l.key)::text END
)
SELECT coalesce(bool_and(freed.ok), true) AS ok, set_config('synchronous_commit', 'off', true) FROM freed
