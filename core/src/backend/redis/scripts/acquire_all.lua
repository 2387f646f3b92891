-- Takes several locks, all of them or none. Asking again with the owner token that holds them is "granted".
--
-- KEYS[1..n]    the locks
-- KEYS[n+1..2n] their fences
-- ARGV          as in acquire.lua; the answers as well, with the longest ttl left of those that are held
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now >= tonumber(ARGV[4]) then return {-2, now} end
local last_token = math.min((now + 3155760000000) * 1000, 9007199254740991)

local n = #KEYS / 2
local ours, busy, foreign, left, last, wrong = {}, false, false, -2, 0, nil
for i = 1, n do
  local owner = redis.pcall('GET', KEYS[i])
  if type(owner) == 'table' and string.sub(owner.err, 1, 9) ~= 'WRONGTYPE' then return owner end
  if owner == ARGV[1] then
    ours[#ours + 1] = KEYS[i]
  elseif owner then
    busy = true
    if type(owner) == 'table' and redis.call('TYPE', KEYS[i]).ok ~= 'zset' then foreign = true end
    local ttl = redis.call('PTTL', KEYS[i])
    -- Without a ttl (-1) it is the longest of all.
    if left ~= -1 then left = ttl == -1 and -1 or math.max(left, ttl) end
  end
  local fence = redis.pcall('GET', KEYS[n + i]) or '0'
  if type(fence) == 'table' and string.sub(fence.err, 1, 9) ~= 'WRONGTYPE' then return fence end
  -- Not written by us; see acquire.lua.
  local token = type(fence) == 'string' and tonumber(string.match(fence .. ' ', '^(%d+) ')) or math.huge
  last = math.max(last, token)
  if token >= last_token then wrong = KEYS[n + i] end
end
if foreign then return {-3, left} end
if busy then return {0, left} end
if wrong then
  if ours[1] then redis.call('DEL', unpack(ours)) end
  return {err = 'WRONGTYPE the fence ' .. wrong .. ' holds something else than a token'}
end
if #ours == n and last > 0 then return last end

local proposed = tonumber(ARGV[3])
if proposed > (now + 3600000) * 1000 then proposed = time[1] * 1000000 + time[2] end
local token = math.max(last + 1, proposed)
local fence = string.format('%016.0f', token) .. string.sub(ARGV[5], 17)
for i = 1, n do
  redis.call('SET', KEYS[n + i], fence, 'PX', ARGV[6])
  redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
end
return token
