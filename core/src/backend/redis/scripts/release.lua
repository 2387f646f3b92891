-- Frees the lock if it is ours, and wakes those who wait.
--
-- KEYS[1]  the lock
-- ARGV[1]  owner token    ARGV[2]  channel to wake waiters on
--
--  1  freed
--  0  somebody else's
-- -1  not there
local owner = redis.pcall('GET', KEYS[1])
if owner == ARGV[1] then
  redis.call('DEL', KEYS[1])
  -- A user without the right to publish still releases; waiters then find out by their timers.
  redis.pcall('PUBLISH', ARGV[2], '')
  return 1
end
if owner then return 0 end
return -1
