-- Frees locks of several who ask at one time, and wakes those who wait for them.
--
-- KEYS[1..n]   the locks
-- ARGV[1..2n]  owner token and channel to wake waiters on, of one after the other
--
-- For each, in this order, what release.lua answers for one. With no keys it does nothing.
if not KEYS[1] then return {} end
local holders = redis.pcall('MGET', unpack(KEYS))
-- Nothing was done. In its own words not every version tells that from a script that broke off.
if holders.err then return {err = 'NOPERM who may not MGET asks for each alone'} end
local freed, channels, answers = {}, {}, {}
for i = 1, #KEYS do
  if holders[i] == ARGV[2 * i - 1] then
    freed[#freed + 1], channels[#channels + 1], answers[i] = KEYS[i], ARGV[2 * i], 1
  else
    answers[i] = holders[i] and 0 or -1
  end
end
if freed[1] then
  redis.call('DEL', unpack(freed))
  -- Nobody waits for most of them. Users without the right to ask for that, or to publish, still release.
  local heard = redis.pcall('PUBSUB', 'NUMSUB', unpack(channels))
  for i = 1, #channels do
    if heard.err or heard[2 * i] > 0 then redis.pcall('PUBLISH', channels[i], '') end
  end
end
return answers
