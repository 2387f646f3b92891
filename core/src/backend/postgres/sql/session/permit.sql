-- Takes the first of these permits that is free: each is an advisory lock of its own.
--
-- $1 ids of the permits, at least one; $2 key, $3 whether to ask for a NOTIFY, $4 owner token, $5 fencing token, $6 host,
-- $7 pid, $8 label, $9 ttl in us
--
-- One row: slot (the id; NULL: none is free), asked (only now has somebody asked for a NOTIFY).
WITH RECURSIVE tried (place, ok) AS (
    SELECT 1, pg_try_advisory_lock(($1::bigint[])[1])
    UNION ALL
    SELECT place + 1, pg_try_advisory_lock(($1::bigint[])[place + 1]) FROM tried WHERE NOT ok AND place < cardinality($1)
), got AS MATERIALIZED (
    SELECT ($1::bigint[])[max(place) FILTER (WHERE ok)] AS slot FROM tried
), asked AS (
    UPDATE polylock_session AS l SET
        wanted = l.wanted OR got.slot IS NULL,
        sharers = CASE WHEN got.slot IS NULL THEN l.sharers
            ELSE coalesce(l.sharers, '{}') || jsonb_build_object($4, jsonb_build_object(
                'until', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint + $9,
                'since', (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 'token', $5,
                'host', $6, 'pid', $7, 'label', $8, 'backend', pg_backend_pid())) END
    FROM got
    WHERE l.key = $2 AND (got.slot IS NOT NULL OR $3 AND NOT l.wanted)
    RETURNING got.slot IS NULL AS now, set_config('synchronous_commit', 'off', true)
)
SELECT got.slot, coalesce(asked.now, false) AS asked FROM got LEFT JOIN asked ON true
