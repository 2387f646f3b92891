-- Takes the lock if it is free. Asking again with the owner token that holds is "granted".
--
-- KEYS[1]  the lock: a string, the owner token
-- KEYS[2]  its fence, a string: fencing token in 16 digits, owner token and holder record of who had it last, with a
--          space between them
-- KEYS[3]  there while somebody waits to hold exclusively what is held shared
-- ARGV[1]  owner token, new for each attempt
-- ARGV[2]  ttl in ms
-- ARGV[3]  fencing token that the client proposes: its wall clock in us
-- ARGV[4]  time of this server in ms at which the client gives up
-- ARGV[5]  the fence with that token
-- ARGV[6]  how long the fence outlives its last use, in ms
--
-- token                   granted: an integer above 0
-- { 0, ttl left}          somebody else holds it; -1 for one without ttl
-- {-2, now}               too late: nothing was done
-- {-3, ttl left}          in use as something that is not a lock of ours
-- error WRONGTYPE         the fence holds something else than a token: it is as it was, and so is the lock
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now >= tonumber(ARGV[4]) then return {-2, now} end
-- No token of ours is a hundred years ahead of this clock (nor above 2^53, where numbers end). This end moves faster than
-- tokens are given, so nobody gets to it by what somebody else has written.
local last_token = (now + 3155760000000) * 1000

if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  local owner = redis.pcall('GET', KEYS[1])
  if owner ~= ARGV[1] then
    -- Who may not look does not know who holds it.
    if type(owner) == 'table' and string.sub(owner.err, 1, 9) ~= 'WRONGTYPE' then return owner end
    local left = redis.call('PTTL', KEYS[1])
    if type(owner) == 'table' then
      local first = redis.pcall('ZRANGE', KEYS[1], 0, 0)
      if string.sub(first[1] or '', 1, 7) ~= 'shared:' then return {-3, left} end
      -- Held shared: whoever comes after us to share it lets us go first, for as long as we keep asking.
      redis.call('SET', KEYS[3], ARGV[1], 'PX', 600)
    end
    return {0, left}
  end
  local fence = redis.pcall('GET', KEYS[2])
  local token = type(fence) == 'string' and tonumber(string.match(fence .. ' ', '^(%d+) '))
  if token and token <= last_token and token < 9007199254740992 then return token end
end

-- A fresh lock costs three calls: the fence is written with the proposed token, which is nearly always the higher one.
local proposed, last = tonumber(ARGV[3]), nil
-- A client whose clock is far ahead must not push the counter there for everybody: it is given a token by ours.
if proposed > (now + 3600000) * 1000 then
  proposed = time[1] * 1000000 + time[2]
elseif proposed > 0 then
  last = redis.pcall('SET', KEYS[2], ARGV[5], 'PX', ARGV[6], 'GET')
  if not last then return proposed end
  -- As we write it; anything else is looked at more closely below.
  local counter = type(last) == 'string' and string.byte(last, 17) == 32 and tonumber(string.sub(last, 1, 16))
  if counter and counter < proposed then return proposed end
end
-- The counter is ahead of the client's clock, or that of ours (or this server older than 6.2, which has no SET with GET).
if type(last) ~= 'string' then last = redis.pcall('GET', KEYS[2]) or '0' end
local failed = last
if type(last) == 'string' then
  -- What is no number, or too large, was not written by us, and nobody knows which tokens were.
  local token = math.max((tonumber(string.match(last .. ' ', '^(%d+) ')) or math.huge) + 1, proposed)
  if token <= last_token and token < 9007199254740992 then
    failed = redis.pcall('SET', KEYS[2], string.format('%016.0f', token) .. string.sub(ARGV[5], 17), 'PX', ARGV[6])
    if not failed.err then return token end
  else
    failed = redis.pcall('SET', KEYS[2], last, 'PX', ARGV[6])
    if not failed.err then failed = {err = 'WRONGTYPE'} end
  end
end
-- Something else is kept there, or the user may not use it: no lock without its token.
redis.call('DEL', KEYS[1])
if string.sub(failed.err, 1, 9) == 'WRONGTYPE' then
  return {err = 'WRONGTYPE the fence ' .. KEYS[2] .. ' holds something else than a token'}
end
return failed
