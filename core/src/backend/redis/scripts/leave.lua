-- Gives up a place among those who wait, and wakes the others if the lock is free.
--
-- KEYS[1]  the lock    KEYS[2], KEYS[3]  those who wait, as KEYS[4] and KEYS[5] of queue.lua
-- ARGV[1]  who leaves    ARGV[2]  channel to wake waiters on
--
-- 1 if it was there, else 0
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[1]) == 0 then redis.pcall('PUBLISH', ARGV[2], '') end
return 1
