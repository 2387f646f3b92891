-- Puts the lock back on a node that lost it, after a majority of the others confirmed that it is held. It counts
-- from the next extension on.
--
-- KEYS[1]  the lock       KEYS[2]  its fence
-- ARGV[1]  owner token    ARGV[2]  ttl in ms    ARGV[3]  fencing token
-- ARGV[4]  time of this server in ms after which the client has given up
-- ARGV[5]  how long the fence outlives its last use, in ms
--
-- 1 if it is ours now, else 0
local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) > tonumber(ARGV[4]) then return 0 end
local owner = redis.pcall('GET', KEYS[1])
if owner == ARGV[1] then return 1 end
if owner then return 0 end
if tonumber(redis.call('HGET', KEYS[2], 'token') or '0') < tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[2], 'token', ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
