-- Who holds the lock.
--
-- KEYS[1]  the lock    KEYS[2]  its fence    ARGV[1]  the channel that its waiters listen on
--
-- {managers that wait or -1, fencing token, owner token of the fence, holder record, kind, owner token, ttl left in ms,
-- kind, owner token, ...}: the last three for each holder, the longest ttl first; none if it is free. The kind is
-- "exclusive", "shared" or "permit"; the ttl is -1 for a lock without one.
local fence = redis.pcall('GET', KEYS[2])
local token, last, record = string.match(type(fence) == 'string' and fence or '', '^(%d+) (%x*) (.*)$')
-- A user may be without the right to ask this.
local listening = redis.pcall('PUBSUB', 'NUMSUB', ARGV[1])
local answer = {listening.err and -1 or listening[2], token or false, last or false, record or false}

local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'table' and string.sub(owner.err, 1, 9) ~= 'WRONGTYPE' then return owner end
if not owner then return answer end
if type(owner) ~= 'table' then
  for _, value in ipairs({'exclusive', owner, redis.call('PTTL', KEYS[1])}) do answer[#answer + 1] = value end
  return answer
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- So many that a reply stays small; no semaphore that people look at has more.
local holders = redis.pcall('ZREVRANGE', KEYS[1], 0, 999, 'WITHSCORES')
if holders.err then holders = {':', now - 1} end
for i = 1, #holders, 2 do
  local kind, member = string.match(holders[i], '^(%a*):(.*)$')
  local left = tonumber(holders[i + 1]) - now
  if not kind or kind == '' then kind, member, left = 'exclusive', '', redis.call('PTTL', KEYS[1]) end
  if left > 0 or left == -1 then
    answer[#answer + 1] = kind
    answer[#answer + 1] = member
    answer[#answer + 1] = left
  end
end
return answer
