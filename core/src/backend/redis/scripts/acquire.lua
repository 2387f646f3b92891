-- Takes the lock if it is free. Asking again with the owner token that holds is "granted".
--
-- KEYS[1]  the lock: a string, the owner token
-- KEYS[2]  its fence, a hash: token = the fencing token, owner and holder = who had it last
-- KEYS[3]  there while somebody waits to hold exclusively what is held shared
-- ARGV[1]  owner token, new for each attempt
-- ARGV[2]  ttl in ms
-- ARGV[3]  fencing token that the client proposes: its wall clock in us
-- ARGV[4]  time of this server in ms at which the client gives up
-- ARGV[5]  holder record, for inspection
-- ARGV[6]  how long the fence outlives its last use (but for a day), in ms
--
-- { 1, token, ttl left}   granted
-- { 0, token, ttl left}   somebody else holds it; -1 for one without ttl
-- {-2, now, 0}            too late: nothing was done
-- {-3, 0, ttl left}       in use as something that is not a lock of ours
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now >= tonumber(ARGV[4]) then return {-2, now, 0} end

-- A fresh lock costs four calls. (The script is not stopped between two writes: memory is checked on entry.)
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  local last = tonumber(redis.call('HGET', KEYS[2], 'token') or '0')
  -- A client whose clock is far ahead must not push the counter there for everybody.
  local proposed = tonumber(ARGV[3])
  if proposed > (now + 3600000) * 1000 then proposed = 0 end
  local token = math.max(last + 1, proposed)
  redis.call('HSET', KEYS[2], 'token', string.format('%.0f', token), 'owner', ARGV[1], 'holder', ARGV[5])
  -- Tokens are microseconds, so their distance says when the life of the fence was last renewed: a day ago is enough.
  if token - last > 86400000000 then redis.call('PEXPIRE', KEYS[2], ARGV[6]) end
  return {1, token, tonumber(ARGV[2])}
end

local owner = redis.pcall('GET', KEYS[1])
local token = tonumber(redis.call('HGET', KEYS[2], 'token') or '0')
if type(owner) == 'table' then
  local first = redis.pcall('ZRANGE', KEYS[1], 0, 0)
  if string.sub(first[1] or '', 1, 7) ~= 'shared:' then return {-3, 0, redis.call('PTTL', KEYS[1])} end
  -- Held shared: whoever comes after us to share it lets us go first, for as long as we keep asking.
  redis.call('SET', KEYS[3], ARGV[1], 'PX', 600)
  return {0, token, redis.call('PTTL', KEYS[1])}
end
if owner == ARGV[1] then return {1, token, redis.call('PTTL', KEYS[1])} end
return {0, token, redis.call('PTTL', KEYS[1])}
