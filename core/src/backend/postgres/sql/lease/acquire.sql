-- Takes the lease alone if it is free or expired. Asking again with the owner token that holds is "granted", with the same token.
--
-- $1 key, $2 owner token, $3 ttl in us, $4 time of this server in us since 1970 after which the client has given up,
-- $5 host, $6 pid, $7 label, $8 whether to ask for a NOTIFY when it is released
--
-- One row: token (NULL: not granted), held (by somebody else), kind (exclusive, shared or permit, as it is held), us_left
-- (until that is over), asked (there will be a NOTIFY), now (us since 1970).
--
-- `seen` is read without a lock, so that trying in vain writes nothing. INSERT ... ON CONFLICT locks the row before it looks
-- again at what is newest; clock_timestamp() there is the time after that wait, and the token is counted from
-- the locked row. `taken` and `asked` exclude each other by seen.held.
WITH seen AS MATERIALIZED (
    SELECT owner, expires_at, wanted, owner IS NOT NULL AND owner <> $2 AND expires_at > clock_timestamp() AS held,
           -- Who shares it lets us go first, for as long as we keep asking.
           owner = 'shared' AND coalesce(writer_until < clock_timestamp() + interval '0.35 s', true) AS keep_out
    FROM polylock_lease WHERE key = $1
), taken AS (
    INSERT INTO polylock_lease AS l (key, token, owner, expires_at, acquired_at, host, pid, label)
    SELECT $1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, $2,
           clock_timestamp() + $3 * interval '1 microsecond', clock_timestamp(), $5, $6, $7
    WHERE NOT EXISTS (SELECT 1 FROM seen WHERE held)
      AND (extract(epoch FROM clock_timestamp()) * 1000000)::bigint <= $4
    ON CONFLICT (key) DO UPDATE SET
        token = CASE WHEN l.owner = $2 THEN l.token
                     ELSE greatest(l.token + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) END,
        owner = $2, sharers = NULL, writer_until = NULL,
        expires_at = clock_timestamp() + $3 * interval '1 microsecond',
        acquired_at = CASE WHEN l.owner = $2 THEN l.acquired_at ELSE clock_timestamp() END,
        host = $5, pid = $6, label = $7, wanted = false
    WHERE (l.owner IS NULL OR l.owner = $2 OR l.expires_at <= clock_timestamp())
      AND (extract(epoch FROM clock_timestamp()) * 1000000)::bigint <= $4
    -- A grant that a crash of the server forgets would be given twice.
    RETURNING token,
        CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
), asked AS (
    UPDATE polylock_lease AS l SET
        wanted = l.wanted OR $8,
        writer_until = CASE WHEN seen.keep_out THEN clock_timestamp() + interval '0.6 s' ELSE l.writer_until END
    FROM seen
    WHERE seen.held AND ($8 AND NOT seen.wanted OR seen.keep_out)
      AND l.key = $1 AND l.owner = seen.owner AND l.expires_at > clock_timestamp()
    -- A crash wakes the waiter in any case.
    RETURNING set_config('synchronous_commit', 'off', true) AS done
)
SELECT taken.token,
       coalesce(seen.held, false) AS held,
       CASE WHEN seen.owner IN ('shared', 'permit') THEN seen.owner ELSE 'exclusive' END AS kind,
       (extract(epoch FROM seen.expires_at - clock_timestamp()) * 1000000)::bigint AS us_left,
       coalesce(seen.wanted, false) OR asked.done IS NOT NULL AS asked,
       (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now
FROM (VALUES (1)) AS one LEFT JOIN taken ON true LEFT JOIN seen ON true LEFT JOIN asked ON true
