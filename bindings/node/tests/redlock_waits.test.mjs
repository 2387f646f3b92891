// polylock/redlock while somebody else holds the lock: it waits in the engine, and programs see what they saw when redlock slept.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { connect } from 'polylock'
import Redlock, { ExecutionError, LockError, ResourceLockedError } from 'polylock/redlock'

import { redisUrl, unique, withRedis } from './support.mjs'

const skip = redisUrl === undefined
const places = {
  'one server': [redisUrl],
  'three servers': (process.env.POLYLOCK_TEST_REDLOCK ?? '').split(',').slice(0, 3),
}
/** Far longer than any test takes. */
const never = 600_000

/** What `promise` resolves to; fails if that takes as long as redlock would sleep. */
async function soon(promise) {
  const late = new AbortController()
  const limit = sleep(20_000, undefined, { signal: late.signal }).then(() => assert.fail('it was not woken'))
  limit.catch(() => {})
  try {
    return await Promise.race([promise, limit])
  } finally {
    late.abort()
  }
}

for (const [name, urls] of Object.entries(places)) {
  test(`a release wakes who would sleep on, one after the other, on ${name}`, { skip }, async () => {
    const redlock = new Redlock(urls, { retryCount: 5, retryDelay: never, retryJitter: 0 })
    // Of another process, as far as the other knows.
    const locks = connect(urls)
    const key = unique('{r}wake')
    const lease = await locks.acquire(key)
    const calls = {
      acquire: async () => (await redlock.acquire([key], 30_000)).release(),
      lock: async () => (await redlock.lock(key, 30_000)).unlock(),
      using: () => redlock.using([key, `${key}2`], 30_000, async () => {}),
    }
    const all = Object.values(calls).flatMap((call) => [call(), call()])
    await lease.release()
    await soon(Promise.all(all))
    await locks.close()
    await redlock.quit()
  })
}

test('a lock that is won after a wait lasts from then on, and tells how often redlock would have tried', { skip }, () =>
  withRedis(redisUrl, async (client) => {
    const redlock = new Redlock([redisUrl], { retryCount: -1, retryDelay: 50, retryJitter: 0 })
    for (const version of [4, 5]) {
      const key = unique('{r}late')
      const began = Date.now()
      await client.set(key, 'other', 'PX', 1_500)
      const lock = version === 4 ? await redlock.lock(key, 60_000) : await redlock.acquire([key], 60_000)
      // 602 ms are taken off for clocks that run apart.
      assert.ok(lock.expiration >= began + 1_500 + 60_000 - 602 && lock.expiration <= Date.now() + 60_000 - 602)
      const attempts = version === 4 ? lock.attempts : lock.attempts.length
      assert.ok(attempts >= 2 && attempts <= 2 + (Date.now() - began) / 50, String(attempts))
      await lock.release()
    }
    await redlock.quit()
  }),
)

test('it gives up when redlock would have, and says so as redlock does', { skip }, () =>
  withRedis(redisUrl, async (client) => {
    const settings = { retryCount: 4, retryDelay: 50, retryJitter: 0 }
    const redlock = new Redlock([redisUrl], settings)
    const emitted = []
    redlock.on('error', (error) => emitted.push(error))
    const key = unique('{r}held')
    await client.set(key, 'other')
    for (const [retryCount, attempts] of [
      [4, 5],
      [1.5, 2],
      [0, 1],
    ]) {
      const began = performance.now()
      const of5 = await redlock.acquire([key], 5_000, { retryCount }).catch((error) => error)
      assert.ok(performance.now() - began >= Math.floor(retryCount) * 50)
      assert.ok(of5 instanceof ExecutionError)
      assert.equal(of5.attempts.length, attempts)
      for (const attempt of of5.attempts) {
        for (const vote of (await attempt).votesAgainst.values()) assert.ok(vote instanceof ResourceLockedError)
      }
      const of4 = await redlock.lockWithOptions(key, 5_000, { retryCount }).catch((error) => error)
      assert.ok(of4 instanceof LockError)
      assert.equal(of4.attempts, attempts)
    }
    assert.deepEqual(emitted, [])
    await client.del(key)
    await redlock.quit()
  }),
)

test('a holder that wakes nobody is waited for as well', { skip }, () =>
  withRedis(redisUrl, async (client) => {
    const redlock = new Redlock([redisUrl], { retryCount: -1, retryDelay: never })
    const key = unique('{r}quiet')
    await client.set(key, 'other')
    const waiting = [redlock.acquire([key], 5_000), redlock.lock(key, 5_000)]
    await sleep(50) // also if it asks only when it is free
    await client.del(key)
    // Whichever is first.
    await Promise.all(waiting.map(async (lock) => (await soon(lock)).release()))
    await redlock.quit()
  }),
)

for (const settings of [{ retryDelay: NaN }, { retryDelay: -5 }, { retryDelay: 0, retryJitter: 0 }]) {
  test(`a retryDelay of ${settings.retryDelay} is as good as none`, { skip }, () =>
    withRedis(redisUrl, async (client) => {
      const redlock = new Redlock([redisUrl], { ...settings, retryCount: 3 })
      const key = unique('{r}odd')
      await client.set(key, 'other')
      assert.equal((await redlock.lock(key, 5_000).catch((error) => error)).attempts, 4)
      await client.del(key)
      await redlock.quit()
    }),
  )
}

test('to quit ends a wait, though another Redlock of the same servers goes on', { skip }, async () => {
  const settings = { retryCount: -1, retryDelay: never }
  const [one, other] = [new Redlock([redisUrl], settings), new Redlock([redisUrl], settings)]
  const key = unique('{r}quits')
  const lock = await other.acquire([key], 30_000)
  const ended = one.acquire([key], 30_000).catch((error) => error)
  const goes = other.acquire([key], 30_000)
  await sleep(50) // also if it waits only now it is ended
  await one.quit()
  const error = await soon(ended)
  assert.ok(error instanceof ExecutionError)
  const votes = [...(await error.attempts.at(-1)).votesAgainst.values()]
  assert.deepEqual(
    votes.map(({ message }) => message),
    ['Connection is closed.'],
  )
  await lock.release()
  await (await soon(goes)).release()
  await other.quit()
})
