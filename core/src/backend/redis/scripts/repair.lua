-- Puts the locks back on a node that lost them, after a majority of the others confirmed that they are held. It
-- counts from the next extension on.
--
-- KEYS[1..n]     the locks
-- KEYS[n+1..2n]  their fences
-- ARGV[1]  owner token    ARGV[2]  ttl in ms    ARGV[3]  fencing token in 16 digits
-- ARGV[4]  time of this server in ms at which the client gives up
-- ARGV[5]  how long a fence outlives its last use, in ms
--
-- 1 if all are ours now, else 0
local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) >= tonumber(ARGV[4]) then return 0 end
local n = #KEYS / 2
for i = 1, n do
  local owner = redis.pcall('GET', KEYS[i])
  if type(owner) == 'table' and string.sub(owner.err, 1, 9) ~= 'WRONGTYPE' then return owner end
  if owner and owner ~= ARGV[1] then return 0 end
end
for i = 1, n do
  local fence = redis.call('GET', KEYS[n + i]) or '0'
  -- What is not a token stays: nobody gets one there.
  if (tonumber(string.match(fence .. ' ', '^(%d+) ')) or math.huge) < tonumber(ARGV[3]) then
    redis.call('SET', KEYS[n + i], ARGV[3] .. string.sub(fence, 17), 'PX', ARGV[5])
  end
  redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
end
return 1
