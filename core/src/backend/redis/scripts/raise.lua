-- Raises the fences to the token that the quorum agreed on, only while the locks are still ours and only from below.
-- (Any weaker condition lets another holder have a smaller or an equal token: of those who share a lock or a semaphore, one may
-- have raised the fence to just that.)
--
-- KEYS[1..n]  the locks, or one shared lock    KEYS[n+1..2n]  their fences
-- ARGV[1]  owner token, with its kind if the lock is shared
-- ARGV[2]  fencing token in 16 digits    ARGV[3]  how long a fence outlives its last use, in ms
--
-- { 1, token}  the fences are at the token now, and the locks were ours
-- {-1, token}  a fence is there or above already: the token to agree on is above this
-- { 0, 0}      the locks are not ours
-- error WRONGTYPE  a fence holds something else than a token
local n = #KEYS / 2
local highest, fences = 0, {}
for i = 1, n do
  local owner = redis.pcall('GET', KEYS[i])
  if type(owner) == 'table' and string.sub(owner.err, 1, 9) ~= 'WRONGTYPE' then return owner end
  local shared = type(owner) == 'table' and type(redis.pcall('ZSCORE', KEYS[i], ARGV[1])) == 'string'
  if owner ~= ARGV[1] and not shared then return {0, 0} end
  fences[i] = redis.call('GET', KEYS[n + i]) or '0'
  local token = tonumber(string.match(fences[i] .. ' ', '^(%d+) ')) or math.huge
  if token >= 9007199254740992 then
    return {err = 'WRONGTYPE the fence ' .. KEYS[n + i] .. ' holds something else than a token'}
  end
  highest = math.max(highest, token)
end
if highest >= tonumber(ARGV[2]) then return {-1, highest} end
for i = 1, n do redis.call('SET', KEYS[n + i], ARGV[2] .. string.sub(fences[i], 17), 'PX', ARGV[3]) end
return {1, tonumber(ARGV[2])}
