-- Who holds it. No row: nobody.
--
-- $1 key
SELECT owner, token, (extract(epoch FROM expires_at - clock_timestamp()) * 1000000)::bigint AS us_left,
       (extract(epoch FROM acquired_at) * 1000000)::bigint AS since, host, pid, label
FROM polylock_lease WHERE key = $1 AND owner IS NOT NULL AND expires_at > clock_timestamp()
