-- Lets one holder of several stay for another ttl if it still holds.
--
-- KEYS[1]  the lock    KEYS[2]  if permits are numbered: the hash, both as in share.lua
-- ARGV[1]  owner token    ARGV[2]  ttl in ms    ARGV[3]  "shared:" or "permit:"
-- ARGV[4]  if permits are numbered: the number of the one that is held. Another is given back: it is no part of that.
--
-- 1 extended, -1 does not hold
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local member = ARGV[3] .. ARGV[1]
local expires = redis.pcall('ZSCORE', KEYS[1], member)
if type(expires) == 'table' and string.sub(expires.err, 1, 9) ~= 'WRONGTYPE' then return expires end
if type(expires) ~= 'string' or tonumber(expires) <= now then return -1 end
if KEYS[2] and redis.call('HGET', KEYS[2], ARGV[4]) ~= ARGV[1] then
  redis.call('ZREM', KEYS[1], member)
  return -1
end
redis.call('ZADD', KEYS[1], now + ARGV[2], member)
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[2])))
if KEYS[2] then redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1])) end
return 1
