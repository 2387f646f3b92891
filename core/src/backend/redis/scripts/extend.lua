-- Lets the locks live for another ttl if all of them are still ours.
--
-- KEYS[1..n]  the locks
-- ARGV[1]     owner token    ARGV[2]  ttl in ms
--
--  1  extended
--  0  one is somebody else's: nothing was done
-- -1  one is not there: nothing was done
for i = 1, #KEYS do
  local owner = redis.pcall('GET', KEYS[i])
  if type(owner) == 'table' and string.sub(owner.err, 1, 9) ~= 'WRONGTYPE' then return owner end
  if not owner then return -1 end
  if owner ~= ARGV[1] then return 0 end
end
for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
return 1
