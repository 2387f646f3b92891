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
const { default: Same } = Redlock

export = { done, options, same: new Same(['redis://localhost']) }
