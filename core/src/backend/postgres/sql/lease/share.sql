-- Takes a shared lease or a permit: one more of those in `sharers`.
--
-- $1 key, $2 owner token, $3 ttl in us, $4 time of this server in us since 1970 after which the client has given up,
-- $5 host, $6 pid, $7 label, $8 whether to ask for a NOTIFY when it is released, $9 shared or permit, $10 how many may hold it
--
-- One row as of acquire.sql.
--
-- The condition is asked twice: of what is seen without a lock, so that trying in vain writes nothing, and of the newest
-- row when it is locked.
WITH seen AS MATERIALIZED (
    SELECT l.owner, l.wanted,
           CASE WHEN l.owner <> $9 AND l.expires_at > clock_timestamp() THEN l.expires_at
                WHEN l.owner = $9 AND (l.sharers -> $2 ->> 'until')::bigint
                    > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint THEN NULL
                WHEN $9 = 'shared' AND l.writer_until > clock_timestamp() THEN l.writer_until
                WHEN others.count >= $10 THEN 'epoch'::timestamptz + others.first * interval '1 microsecond'
           END AS held_until
    FROM polylock_lease AS l, LATERAL (
        SELECT count(*), min((other.value ->> 'until')::bigint) AS first FROM jsonb_each(l.sharers) AS other
        WHERE other.key <> $2
          AND (other.value ->> 'until')::bigint > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
    ) AS others
    WHERE l.key = $1
), taken AS (
    INSERT INTO polylock_lease AS l (key, token, owner, expires_at, sharers)
    SELECT $1, mine.token, $9, clock_timestamp() + $3 * interval '1 microsecond',
           jsonb_build_object($2, jsonb_build_object(
               'until', mine.token + $3, 'since', mine.token, 'token', mine.token, 'host', $5, 'pid', $6, 'label', $7))
    FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS token) AS mine
    WHERE NOT EXISTS (SELECT 1 FROM seen WHERE held_until IS NOT NULL) AND mine.token <= $4
    ON CONFLICT (key) DO UPDATE SET (token, owner, expires_at, sharers, wanted) = (
        SELECT mine.token, $9,
               'epoch'::timestamptz + greatest(others.last, mine.now + $3) * interval '1 microsecond',
               coalesce(others.all, '{}') || jsonb_build_object($2, jsonb_build_object(
                   'until', mine.now + $3, 'since', coalesce((mine.before ->> 'since')::bigint, mine.now),
                   'token', mine.token, 'host', $5, 'pid', $6, 'label', $7)),
               l.wanted AND others.last IS NOT NULL
        FROM (
            SELECT now, before, coalesce((before ->> 'token')::bigint, greatest(l.token + 1, now)) AS token
            FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now,
                         CASE WHEN l.owner = $9 THEN l.sharers -> $2 END AS before) AS known
        ) AS mine, LATERAL (
            SELECT jsonb_object_agg(other.key, other.value) AS all, max((other.value ->> 'until')::bigint) AS last
            FROM jsonb_each(l.sharers) AS other
            WHERE other.key <> $2 AND (other.value ->> 'until')::bigint > mine.now
        ) AS others
    )
    WHERE CASE WHEN l.owner <> $9 AND l.expires_at > clock_timestamp() THEN false
               WHEN l.owner = $9 AND (l.sharers -> $2 ->> 'until')::bigint
                    > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint THEN true
               WHEN $9 = 'shared' AND l.writer_until > clock_timestamp() THEN false
               ELSE (SELECT count(*) FROM jsonb_each(l.sharers) AS other
                     WHERE other.key <> $2
                       AND (other.value ->> 'until')::bigint > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                    ) < $10
          END
      AND (extract(epoch FROM clock_timestamp()) * 1000000)::bigint <= $4
    RETURNING (sharers -> $2 ->> 'token')::bigint AS token,
        CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), asked AS (
    UPDATE polylock_lease AS l SET wanted = true FROM seen
    WHERE $8 AND seen.held_until IS NOT NULL AND NOT seen.wanted
      AND l.key = $1 AND l.owner = seen.owner AND l.expires_at > clock_timestamp()
    RETURNING set_config('synchronous_commit', 'off', true) AS done
)
SELECT taken.token,
       seen.held_until IS NOT NULL AS held,
       CASE WHEN seen.owner IN ('shared', 'permit') THEN seen.owner ELSE 'exclusive' END AS kind,
       (extract(epoch FROM seen.held_until - clock_timestamp()) * 1000000)::bigint AS us_left,
       coalesce(seen.wanted, false) OR asked.done IS NOT NULL AS asked,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
FROM (VALUES (1)) AS one LEFT JOIN taken ON true LEFT JOIN seen ON true LEFT JOIN asked ON true
