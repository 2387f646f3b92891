-- Takes one lock: stands behind acquire.lua, whose answers these are.
--
-- KEYS[1..3]  lock, fence and writer
-- ARGV[1..6]  owner, ttl, proposal, not_after, record and outlives
return acquire(redis.call('TIME'), KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6])
