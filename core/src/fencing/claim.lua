-- KEYS[1] the hash; ARGV[1] the fencing token; ARGV[2] the value, or nothing to claim only
local token = tonumber(ARGV[1])
if tonumber(redis.call('HGET', KEYS[1], 'token') or '0') > token then
    return 0
end
redis.call('HSET', KEYS[1], 'token', ARGV[1])
if ARGV[2] then
    redis.call('HSET', KEYS[1], 'value', ARGV[2])
end
return 1
