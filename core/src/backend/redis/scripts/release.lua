-- Frees those of the locks that are ours, and wakes those who wait for them.
--
-- KEYS[1..n]    the locks
-- ARGV[1]       owner token    ARGV[2..n+1]  channels to wake waiters on
-- ARGV[n+2..]   lists that waiters of python-redis-lock block on, if any
--
--  1  all were ours
--  0  one was somebody else's
-- -1  one was not there
local outcome = 1
for i = 1, #KEYS do
  local owner = redis.pcall('GET', KEYS[i])
  if type(owner) == 'table' and string.sub(owner.err, 1, 9) ~= 'WRONGTYPE' then return owner end
  if owner == ARGV[1] then
    redis.call('DEL', KEYS[i])
    -- A user without the right to publish still releases; waiters then find out by their timers.
    redis.pcall('PUBLISH', ARGV[i + 1], '')
    local signal = ARGV[#KEYS + 1 + i]
    if signal then
      -- As it does itself.
      redis.pcall('DEL', signal)
      redis.pcall('LPUSH', signal, 1)
      redis.pcall('PEXPIRE', signal, 1000)
    end
  elseif owner then
    outcome = 0
  elseif outcome == 1 then
    outcome = -1
  end
end
return outcome
