-- Lets the lock live for another ttl if it is still ours.
--
-- KEYS[1]  the lock
-- ARGV[1]  owner token    ARGV[2]  ttl in ms
--
--  1  extended
--  0  somebody else's
-- -1  not there
local owner = redis.pcall('GET', KEYS[1])
if owner == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 1
end
if owner then return 0 end
return -1
