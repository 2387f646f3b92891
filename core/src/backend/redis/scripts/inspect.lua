-- Who holds the lock.
--
-- KEYS[1]  the lock    KEYS[2]  its fence
--
-- {owner token or false, ttl left in ms, fencing token, owner token of the fence, holder record}
local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'table' then owner = '' end
local fence = redis.call('HMGET', KEYS[2], 'token', 'owner', 'holder')
return {owner, redis.call('PTTL', KEYS[1]), fence[1], fence[2], fence[3]}
