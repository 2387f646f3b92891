-- Makes the lease last until $3 us from now. No row: it is not ours, or it lapsed (then it stays so).
--
-- $1 key, $2 owner token, $3 ttl in us
UPDATE polylock_lease SET expires_at = clock_timestamp() + $3 * interval '1 microsecond'
WHERE key = $1 AND owner = $2 AND expires_at > clock_timestamp()
RETURNING true,
    CASE current_setting('synchronous_commit') WHEN 'off' THEN set_config('synchronous_commit', 'on', true) END
