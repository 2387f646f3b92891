-- Says that the holder means to hold it for $3 us more. That it is answered at all proves that the session lives and holds.
--
-- $1 key, $2 owner token, $3 ttl in us
UPDATE polylock_session SET expires_at = clock_timestamp() + $3 * interval '1 microsecond'
WHERE key = $1 AND owner = $2
RETURNING set_config('synchronous_commit', 'off', true)
