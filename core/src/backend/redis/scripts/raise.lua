-- Raises the fence to the token that the quorum agreed on, only while the lock is still ours and only upwards.
-- (Any weaker condition lets a later holder get a smaller or an equal token.)
--
-- KEYS[1]  the lock       KEYS[2]  its fence
-- ARGV[1]  owner token    ARGV[2]  fencing token
--
-- { 1, token}  the fence is at the token now, and the lock was ours
-- {-1, token}  the fence is above already: that is the token to agree on
-- { 0, 0}      the lock is not ours
if redis.pcall('GET', KEYS[1]) ~= ARGV[1] then return {0, 0} end
local token = tonumber(redis.call('HGET', KEYS[2], 'token') or '0')
if token > tonumber(ARGV[2]) then return {-1, token} end
redis.call('HSET', KEYS[2], 'token', ARGV[2])
return {1, tonumber(ARGV[2])}
