-- Takes locks for several who ask at one time, one after the other: stands behind acquire.lua.
--
-- KEYS, ARGV  those of acquire_one.lua, of one after the other
--
-- The answers of acquire.lua in this order. If it breaks off, some may have been granted. With no keys it does nothing.
local time = redis.call('TIME')
local answers, word = {}, 1
for key = 1, #KEYS, 3 do
  answers[#answers + 1] = acquire(time, KEYS[key], KEYS[key + 1], KEYS[key + 2], ARGV[word], ARGV[word + 1], ARGV[word + 2],
    ARGV[word + 3], ARGV[word + 4], ARGV[word + 5])
  word = word + 6
end
return answers
