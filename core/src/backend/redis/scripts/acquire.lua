-- Takes a lock if it is free. Asking again with the owner token that holds is "granted".
--
-- time       this server's clock, as TIME tells it
-- lock       the key of the lock: a string, the owner token
-- fence      the key of its fence, a string: fencing token in 16 digits, owner token and holder record of who had it last,
--            with a space between them
-- writer     a key that is there while somebody waits to hold exclusively what is held shared
-- owner      owner token, new for each attempt
-- ttl        in ms
-- proposal   fencing token that the client proposes: its wall clock in us
-- not_after  time of this server in ms at which the client gives up
-- record     the fence with that token
-- outlives   how long the fence outlives its last use, in ms
--
-- token                   granted: an integer above 0
-- { 0, ttl left}          somebody else holds it; -1 for one without ttl
-- {-2, now}               too late: nothing was done
-- {-3, ttl left}          in use as something that is not a lock of ours
-- error WRONGTYPE         the fence holds something else than a token: it is as it was, and so is the lock
local function acquire(time, lock, fence, writer, owner, ttl, proposal, not_after, record, outlives)
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if now >= tonumber(not_after) then return {-2, now} end
  -- No token of ours is a hundred years ahead of this clock (nor above 2^53, where numbers end). This end moves faster than
  -- tokens are given, so nobody gets to it by what somebody else has written.
  local last_token = (now + 3155760000000) * 1000

  if not redis.call('SET', lock, owner, 'NX', 'PX', ttl) then
    local holder = redis.pcall('GET', lock)
    if holder ~= owner then
      -- Who may not look does not know who holds it.
      if type(holder) == 'table' and string.sub(holder.err, 1, 9) ~= 'WRONGTYPE' then return holder end
      local left = redis.call('PTTL', lock)
      if type(holder) == 'table' then
        local first = redis.pcall('ZRANGE', lock, 0, 0)
        if string.sub(first[1] or '', 1, 7) ~= 'shared:' then return {-3, left} end
        -- Held shared: whoever comes after us to share it lets us go first, for as long as we keep asking.
        redis.call('SET', writer, owner, 'PX', 600)
      end
      return {0, left}
    end
    local last = redis.pcall('GET', fence)
    local token = type(last) == 'string' and tonumber(string.match(last .. ' ', '^(%d+) '))
    if token and token <= last_token and token < 9007199254740992 then return token end
  end

  -- A fresh lock costs three calls: the fence is written with the proposed token, which is nearly always the higher one.
  local proposed, last = tonumber(proposal), nil
  -- A client whose clock is far ahead must not push the counter there for everybody: it is given a token by ours.
  if proposed > (now + 3600000) * 1000 then
    proposed = time[1] * 1000000 + time[2]
  elseif proposed > 0 then
    last = redis.pcall('SET', fence, record, 'PX', outlives, 'GET')
    if not last then return proposed end
    -- As we write it; anything else is looked at more closely below.
    local counter = type(last) == 'string' and string.byte(last, 17) == 32 and tonumber(string.sub(last, 1, 16))
    if counter and counter < proposed then return proposed end
  end
  -- The counter is ahead of the client's clock, or that of ours (or this server older than 6.2, which has no SET with GET).
  if type(last) ~= 'string' then last = redis.pcall('GET', fence) or '0' end
  local failed = last
  if type(last) == 'string' then
    -- What is no number, or too large, was not written by us, and nobody knows which tokens were.
    local token = math.max((tonumber(string.match(last .. ' ', '^(%d+) ')) or math.huge) + 1, proposed)
    if token <= last_token and token < 9007199254740992 then
      failed = redis.pcall('SET', fence, string.format('%016.0f', token) .. string.sub(record, 17), 'PX', outlives)
      if not failed.err then return token end
    else
      failed = redis.pcall('SET', fence, last, 'PX', outlives)
      if not failed.err then failed = {err = 'WRONGTYPE'} end
    end
  end
  -- Something else is kept there, or the user may not use it: no lock without its token.
  redis.call('DEL', lock)
  if string.sub(failed.err, 1, 9) == 'WRONGTYPE' then
    return {err = 'WRONGTYPE the fence ' .. fence .. ' holds something else than a token'}
  end
  return failed
end
