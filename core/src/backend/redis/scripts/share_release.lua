-- Gives up the place of one holder of several, and wakes those who wait.
--
-- KEYS[1]  the lock    KEYS[2]  of a permit: the hash of the numbers, both as in share.lua
-- ARGV[1]  owner token    ARGV[2]  "shared:" or "permit:"
-- ARGV[3]  the number of a numbered permit, else empty. Where it has another one, that is found to be free by whoever looks.
-- ARGV[4]  channel to wake waiters on
--
-- 1 given up, -1 did not hold
local removed = redis.pcall('ZREM', KEYS[1], ARGV[2] .. ARGV[1])
if type(removed) == 'table' and string.sub(removed.err, 1, 9) ~= 'WRONGTYPE' then return removed end
if removed ~= 1 then return -1 end
if ARGV[3] ~= '' and redis.pcall('HGET', KEYS[2], ARGV[3]) == ARGV[1] then redis.pcall('HDEL', KEYS[2], ARGV[3]) end
-- After the last one nothing is left.
if KEYS[2] and redis.pcall('EXISTS', KEYS[1]) == 0 then redis.pcall('DEL', KEYS[2]) end
redis.pcall('PUBLISH', ARGV[4], '')
return 1
