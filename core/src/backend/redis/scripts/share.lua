-- Takes a place among several holders: of a shared lock, or a permit of a semaphore.
--
-- KEYS[1]  the lock: a sorted set, kind and owner token of each holder by the server's time in ms at which it expires
-- KEYS[2]  its fence, as in acquire.lua
-- KEYS[3]  there while somebody waits to hold the lock exclusively; without a ttl it is nobody's
-- KEYS[4]  if permits are numbered: a hash, owner tokens by their numbers; of some that do not hold any more as well
-- ARGV[1..6] as in acquire.lua
-- ARGV[7]  "shared:" or "permit:"
-- ARGV[8]  how many may hold; 0 for any number
-- ARGV[9]  if permits are numbered: the number to give, or else the first after it that is free, from 0
--
-- {1, token, number}  granted, where permits are numbered
-- Else answers as in acquire.lua. Asking again with the owner token that holds is granted with the same number, but with a
-- later token: the counter may be another holder's by now.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now >= tonumber(ARGV[4]) then return {-2, now} end

local kind = redis.call('TYPE', KEYS[1]).ok
local held = redis.call('PTTL', KEYS[1])
if kind == 'string' then
  if ARGV[7] == 'permit:' then return {-3, held} end
  return {0, held}
end
if kind ~= 'zset' and kind ~= 'none' then return {-3, held} end

local member = ARGV[7] .. ARGV[1]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if first[1] and string.sub(first[1], 1, 7) ~= ARGV[7] then
  -- A shared lock and a semaphore; only a reader and a writer exclude each other.
  return {-3, held}
end
local fence = redis.pcall('GET', KEYS[2]) or '0'
if type(fence) == 'table' and string.sub(fence.err, 1, 9) ~= 'WRONGTYPE' then return fence end
-- Not written by us; see acquire.lua.
local last = type(fence) == 'string' and tonumber(string.match(fence .. ' ', '^(%d+) ')) or math.huge
if last >= math.min((now + 3155760000000) * 1000, 9007199254740991) then
  redis.call('ZREM', KEYS[1], member)
  return {err = 'WRONGTYPE the fence ' .. KEYS[2] .. ' holds something else than a token'}
end
local ours = redis.call('ZSCORE', KEYS[1], member)
local limit = tonumber(ARGV[8])

-- The number that is ours, or else the first from the wanted one on that nobody has: one look while few hold.
local function number()
  local owners = ours and redis.call('HGETALL', KEYS[4]) or {}
  for i = 1, #owners, 2 do
    if owners[i + 1] == ARGV[1] then return owners[i] end
  end
  for i = 0, limit - 1 do
    local wanted = (ARGV[9] + i) % limit
    local owner = redis.call('HGET', KEYS[4], wanted)
    if not owner or not redis.call('ZSCORE', KEYS[1], 'permit:' .. owner) then return wanted end
  end
end
local full = limit > 0 and not ours and redis.call('ZCARD', KEYS[1]) >= limit
local permit = KEYS[4] and not full and number()
local function granted(token)
  if not permit then return token end
  redis.call('HSET', KEYS[4], permit, ARGV[1])
  redis.call('PEXPIRE', KEYS[4], redis.call('PTTL', KEYS[1]))
  return {1, token, tonumber(permit)}
end

if full or KEYS[4] and not permit then
  -- (Without a number only if others name more permits than we do.)
  redis.call('ZREM', KEYS[1], member)
  return {0, first[2] - now}
end
-- Those who came after a waiting writer let it go first.
local waits = limit == 0 and not ours and redis.call('PTTL', KEYS[3]) or 0
if waits > 0 then return {0, waits} end

local proposed = tonumber(ARGV[3])
if proposed > (now + 3600000) * 1000 then proposed = time[1] * 1000000 + time[2] end
local token = math.max(last + 1, proposed)
redis.call('SET', KEYS[2], string.format('%016.0f', token) .. string.sub(ARGV[5], 17), 'PX', ARGV[6])
redis.call('ZADD', KEYS[1], now + ARGV[2], member)
redis.call('PEXPIRE', KEYS[1], math.max(held, tonumber(ARGV[2])))
return granted(token)
