-- Who holds the lock.
--
-- KEYS[1]  the lock    KEYS[2]  its fence
--
-- {owner token or false, ttl left in ms, fencing token, owner token of the fence, holder record}; of several
-- holders the one that may stay longest
local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'table' then
  local last = redis.pcall('ZREVRANGE', KEYS[1], 0, 0)
  owner = type(last) == 'table' and last[1] and string.match(last[1], '^%a+:(.*)$') or ''
end
local fence = redis.call('HMGET', KEYS[2], 'token', 'owner', 'holder')
return {owner, redis.call('PTTL', KEYS[1]), fence[1], fence[2], fence[3]}
