-- Takes several locks, all of them or none. Asking again with the owner token that holds them is "granted".
--
-- KEYS[1..n]    the locks
-- KEYS[n+1..2n] their fences
-- ARGV          as in acquire.lua; the answers as well, with the longest ttl left of those that are held
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now >= tonumber(ARGV[4]) then return {-2, now} end

local n = #KEYS / 2
local ours, busy, foreign, left, last, highest = 0, false, false, -2, 0, nil
for i = 1, n do
  local owner = redis.pcall('GET', KEYS[i])
  if owner == ARGV[1] then
    ours = ours + 1
  elseif owner then
    busy = true
    if type(owner) == 'table' and redis.call('TYPE', KEYS[i]).ok ~= 'zset' then foreign = true end
    local ttl = redis.call('PTTL', KEYS[i])
    -- Without a ttl (-1) it is the longest of all.
    if left ~= -1 then left = ttl == -1 and -1 or math.max(left, ttl) end
  end
  local counter = tonumber(string.sub(redis.call('GET', KEYS[n + i]) or '', 1, 16)) or 0
  if counter > last then last, highest = counter, KEYS[n + i] end
end
if foreign then return {-3, left} end
if busy then return {0, left} end
if ours == n and last > 0 and last < 9007199254740992 then return last end

local proposed = tonumber(ARGV[3])
if proposed > (now + 3600000) * 1000 then proposed = 0 end
local token = math.max(proposed, last + 1)
if token >= 9007199254740992 then return redis.error_reply('WRONGTYPE ' .. highest .. ' is not a fencing counter') end
local fence = string.format('%016.0f', token) .. string.sub(ARGV[5], 17)
for i = 1, n do
  redis.call('SET', KEYS[n + i], fence, 'PX', ARGV[6])
  redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
end
return token
