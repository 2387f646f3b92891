// Programs of redlock 4, and `require`.

import Redlock = require('polylock/redlock')
import ioredis = require('ioredis')

const redlock = new Redlock([new ioredis.Redis(), 'redis://localhost'], { driftFactor: 0.01, retryCount: 3 })

redlock.on('clientError', (error) => console.error(error))

redlock.lock('resource', 1000, (error, lock) => {
  if (error === null) void lock?.unlock()
})
const done = redlock
  .lock(['one', 'two'], 1000)
  .then((lock: Redlock.Lock) => lock.extend(1000))
  .then((lock) => redlock.unlock(lock))
  .catch((error: unknown) => {
    if (error instanceof Redlock.LockError) console.error(error.attempts)
  })
const options: Redlock.Options = { retryJitter: 5 }
const told: Redlock.Callback<Redlock.Lock> = (_, lock) => {
  if (lock !== undefined && lock.attempts > 1) console.log(lock.attempts + 1, 'tries')
}
const clients: Redlock.CompatibleRedisClient[] = redlock.servers

async function twice(lock: Redlock.Lock): Promise<void> {
  await redlock.lockWithOptions('resource', 1000, { retryCount: 1 }, told)
  const tries: number = lock.attempts
  console.log(tries, clients.length)
  return lock.expiration > Date.now() ? redlock.release(lock) : redlock.quit()
}
const { default: Same } = Redlock

export = { done, options, twice, same: new Same(['redis://localhost']) }
