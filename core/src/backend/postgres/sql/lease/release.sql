-- Frees the lease if it is still ours, and tells who waits for it.
--
-- $1 key, $2 owner token
--
-- One row with whether it was held; none if it is not ours.
--
-- A plain UPDATE would look at the last committed row and pass over our own grant, given up by its client but not yet
-- committed. ON CONFLICT waits for it, also where the row is new. The row that it leaves if there was none is a free one.
INSERT INTO polylock_lease AS l (key, token, expires_at)
VALUES ($1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 'epoch')
ON CONFLICT (key) DO UPDATE SET owner = NULL WHERE l.owner = $2
RETURNING expires_at > clock_timestamp() AS was_held,
    CASE WHEN wanted THEN pg_notify('polylock', key)::text END,
    -- Should a crash forget it, the lease ends by its ttl: that is not worth a wait for the disk.
    set_config('synchronous_commit', 'off', true)
