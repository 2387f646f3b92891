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
-- an error                the fence is something else: the lock is left free
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now >= tonumber(ARGV[4]) then return {-2, now} end

if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  local owner = redis.pcall('GET', KEYS[1])
  if owner ~= ARGV[1] then
    local left = redis.call('PTTL', KEYS[1])
    if type(owner) == 'table' then
      local first = redis.pcall('ZRANGE', KEYS[1], 0, 0)
      if string.sub(first[1] or '', 1, 7) ~= 'shared:' then return {-3, left} end
      -- Held shared: whoever comes after us to share it lets us go first, for as long as we keep asking.
      redis.call('SET', KEYS[3], ARGV[1], 'PX', 600)
    end
    return {0, left}
  end
  local token = tonumber(string.sub(redis.call('GET', KEYS[2]) or '', 1, 16)) or 0
  if token > 0 and token < 9007199254740992 then return token end
end

-- A fresh lock costs three calls: the fence is written with the proposed token, which is nearly always the higher one.
local proposed, last = tonumber(ARGV[3]), nil
-- A client whose clock is far ahead must not push the counter there for everybody.
if proposed > (now + 3600000) * 1000 then proposed = 0 end
if proposed > 0 then
  last = redis.pcall('SET', KEYS[2], ARGV[5], 'PX', ARGV[6], 'GET')
  if not last then return proposed end
  if type(last) == 'string' and (tonumber(string.sub(last, 1, 16)) or 0) < proposed then return proposed end
end
-- The counter is ahead of the client's clock (or this server older than 6.2, which has no SET with GET).
if type(last) ~= 'string' then last = redis.pcall('GET', KEYS[2]) or '' end
local token
if type(last) == 'string' then
  token = math.max(proposed, (tonumber(string.sub(last, 1, 16)) or 0) + 1)
  if token < 9007199254740992 then
    last = redis.pcall('SET', KEYS[2], string.format('%016.0f', token) .. string.sub(ARGV[5], 17), 'PX', ARGV[6])
  else
    -- No counter of ours comes to 2^53. It stays as it is: from a lower one tokens would fall.
    redis.call('SET', KEYS[2], last, 'PX', ARGV[6])
    last = redis.error_reply('WRONGTYPE ' .. KEYS[2] .. ' is not a fencing counter')
  end
end
if last.err then
  -- Something else is kept there, or the user may not use it: no lock without its token.
  redis.call('DEL', KEYS[1])
  return last
end
return token
