// Fencing tokens at what is protected: the script for data in Redis, and a test for any store.
//
// The rule: claim the resource with the token before the first read, then read and write, and have each refused if a
// greater token has been there. For SQL see `CLAIM` of polylock/postgres.

import { connect, type LockManager } from './index.js'

/**
 * A script for Redis that claims a hash, and writes its value.
 *
 * `KEYS[1]` is the hash, with the fields `token` and `value`; `ARGV[1]` the fencing token; `ARGV[2]` the value, or nothing to
 * claim only. It answers 1, or 0 for a holder that came too late.
 */
export const REDIS_CLAIM = `\
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
`

/**
 * Shows that what you write to refuses a zombie: a holder that was paused beyond its lease, and goes on as if nothing had
 * happened.
 *
 * @param write - Claims and writes with the fencing token that it is given, and throws or rejects if it is refused. It is
 *   called for a holder, for the next one after the lease of the first ran out, for the first again, which it must refuse, and
 *   for the second again.
 * @param locks - Where the tokens come from; by default memory.
 * @param resource - The name of the lock.
 * @throws Error if a write was taken that should have been refused, and what `write` throws otherwise.
 */
export async function checkRefusesZombies(
  write: (token: bigint) => unknown,
  locks?: LockManager,
  resource = 'polylock:zombie',
): Promise<void> {
  if (locks === undefined) {
    const own = connect('memory:')
    try {
      return await checkRefusesZombies(write, own, resource)
    } finally {
      await own.close()
    }
  }
  const zombie = await locks.acquire(resource, { ttl: 100, autoExtend: false })
  await write(zombie.fencingToken)
  // It is paused here.
  while (zombie.isHeld) await new Promise((done) => setTimeout(done, zombie.remaining + 1))
  await locks.using(resource, {}, async (lease) => {
    await write(lease.fencingToken)
    let taken = true
    try {
      await write(zombie.fencingToken)
    } catch {
      taken = false
    }
    if (taken) {
      throw new Error(`a write with token ${zombie.fencingToken} was taken after one with token ${lease.fencingToken}`)
    }
    await write(lease.fencingToken)
  })
}
