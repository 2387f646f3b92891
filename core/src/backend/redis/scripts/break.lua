-- Takes the lock away from the holder that was seen, and wakes those who wait for it.
--
-- KEYS[1]  the lock    ARGV[1]  owner token    ARGV[2..3]  channel to wake waiters on, and list, as in release.lua
--
--  1  it was that one's
--  0  somebody else holds it: nothing was done
-- -1  nobody does
local owner = redis.pcall('GET', KEYS[1])
if type(owner) == 'table' and string.sub(owner.err, 1, 9) ~= 'WRONGTYPE' then return owner end
if not owner then return -1 end
if type(owner) == 'table' then
  if redis.pcall('ZREM', KEYS[1], 'shared:' .. ARGV[1], 'permit:' .. ARGV[1]) ~= 1 then return 0 end
elseif owner == ARGV[1] then
  redis.call('DEL', KEYS[1])
else
  return 0
end
redis.pcall('PUBLISH', ARGV[2], '')
if ARGV[3] then
  redis.pcall('DEL', ARGV[3])
  redis.pcall('LPUSH', ARGV[3], 1)
  redis.pcall('PEXPIRE', ARGV[3], 1000)
end
return 1
