-- First come, first served: stands behind acquire.lua.
--
-- KEYS[1..3] as in acquire_one.lua
-- KEYS[4]    those who wait, a sorted set: by when they came, in us of this server's time
-- KEYS[5]    the same, by when they are forgotten unless they ask again, in ms
-- ARGV[1..6] as in acquire_one.lua
-- ARGV[7]    who asks: the same for all attempts of a waiter
-- ARGV[8]    how long it has waited, in us
-- ARGV[9]    how long to remember it, in ms; 0 if it does not wait
-- ARGV[10]   1 if it is not to be held up by those who came before
--
-- Answers as in acquire.lua, also {0, ms left} if the lock is free and it is not our turn: the time is the one after which
-- the first is passed over if it stays silent.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now >= tonumber(ARGV[4]) then return {-2, now} end

-- Before anything is done: somebody else may keep something there.
local first = redis.pcall('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')
if first.err then return {err = first.err .. ' (' .. KEYS[4] .. ')'} end
local gone = redis.pcall('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, 1000)
if gone.err then return {err = gone.err .. ' (' .. KEYS[5] .. ')'} end
if gone[1] then
  redis.call('ZREM', KEYS[4], unpack(gone))
  redis.call('ZREM', KEYS[5], unpack(gone))
  first = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')
end
local stays = first[1] and redis.call('ZSCORE', KEYS[5], first[1])
if first[1] and not stays then
  -- One of the two keys was evicted: everybody asks again and gets the old place.
  redis.call('DEL', KEYS[4])
  first = {}
end

local came = time[1] * 1000000 + time[2] - ARGV[8]
local turn = not first[1] or first[1] == ARGV[7] or came < tonumber(first[2]) or ARGV[10] == '1'
local answer
if turn or redis.call('EXISTS', KEYS[1]) == 1 then
  answer = acquire(time, KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
else
  answer = {0, stays - now}
end
if type(answer) == 'number' then
  redis.call('ZREM', KEYS[4], ARGV[7])
  redis.call('ZREM', KEYS[5], ARGV[7])
elseif answer[1] == 0 and ARGV[9] ~= '0' then
  -- Whoever is in it already keeps the place.
  redis.call('ZADD', KEYS[4], 'NX', string.format('%.0f', came), ARGV[7])
  redis.call('ZADD', KEYS[5], now + ARGV[9], ARGV[7])
  redis.call('PEXPIRE', KEYS[4], ARGV[9])
  redis.call('PEXPIRE', KEYS[5], ARGV[9])
end
return answer
