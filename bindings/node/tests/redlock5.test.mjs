// polylock/redlock as redlock 5, on one server and on several; what redlock 4 and 5 get wrong; and both beside the originals.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { connect as dial, createServer } from 'node:net'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import v8 from 'node:v8'

import { Redis } from 'ioredis'
import { connect, InvalidArgumentError } from 'polylock'
import Redlock, { ExecutionError, Lock, LockError, ResourceLockedError } from 'polylock/redlock'

import { aborted, closedPort, eventually, redisUrl, runNode, unique } from './support.mjs'

const require = createRequire(import.meta.url)
const { queryObjects } = v8
const nodes = (process.env.POLYLOCK_TEST_REDLOCK ?? '').split(',').filter((url) => url !== '')
const sets = { 'one server': [redisUrl], 'three servers': nodes.slice(0, 3) }
const skip = redisUrl === undefined
/** Far beyond what fits in 32 bits, and a whole number still three times over. */
const long = Math.floor(Number.MAX_SAFE_INTEGER / 10)

/** Runs `body` with a client of each server. */
async function withClients(urls, body) {
  const clients = urls.map((url) => new Redis(url))
  try {
    await body(clients)
  } finally {
    for (const client of clients) client.disconnect()
  }
}

/** Asserts that a majority of the servers keep `value` for about `duration`. */
async function assertKept(clients, key, value, duration) {
  const kept = await Promise.all(
    clients.map(async (client) => [await client.get(key), Math.abs((await client.pttl(key)) - duration) < 2_000]),
  )
  const right = kept.filter(([found, soon]) => found === value && soon)
  assert.ok(right.length > clients.length / 2, JSON.stringify(kept))
}

/** What most servers keep: a minority may be behind. */
async function majority(clients, key) {
  const kept = await Promise.all(clients.map((client) => client.get(key)))
  const value = kept.find((value) => kept.filter((other) => other === value).length > clients.length / 2)
  assert.equal(typeof value, 'string', JSON.stringify(kept))
  return value
}

/** Waits until a key has longer than it had. */
async function extended(client, key) {
  let had = Infinity
  await eventually(`${key} is extended`, async () => {
    const [before, has] = [had, await client.pttl(key)]
    had = has
    return has > before
  })
}

/** Asserts that a key is gone from all servers, at once or soon: the last ones may be told in the background. */
const assertGone = (clients, key) =>
  eventually(`${key} is gone`, async () => {
    const found = await Promise.all(clients.map((client) => client.exists(key)))
    return found.every((count) => count === 0)
  })

test('a first lock is on every server when it is told of', { skip }, () =>
  withClients(nodes.slice(0, 3), async (clients) => {
    const [key, rounds] = [unique('everywhere'), 40]
    let everywhere = 0
    for (let round = 0; round < rounds; round++) {
      // Connections of its own: it is told where the servers are, and quit.
      const redlock = new Redlock(nodes.slice(0, 3))
      const lock = await redlock.acquire([key], 10_000)
      const values = await Promise.all(clients.map((client) => client.get(key)))
      everywhere += Number(values.every((value) => value === lock.value))
      await lock.release()
      await redlock.quit()
    }
    // It waits no longer than a moment for those beyond the majority, and this machine may be slow.
    assert.ok(everywhere > rounds / 2, `${everywhere} of ${rounds}`)
  }),
)

for (const [name, urls] of Object.entries(sets)) {
  test(`acquires, extends and releases on ${name}`, { skip }, () =>
    withClients(urls, async (clients) => {
      const redlock = new Redlock(clients)
      for (const keys of [[unique('{r}a')], [unique('{r}b'), unique('{r}a')]]) {
        const lock = await redlock.acquire(keys, long)
        assert.ok(lock instanceof Lock && lock instanceof Redlock.Lock)
        assert.deepEqual(lock.resources, keys)
        for (const key of keys) await assertKept(clients, key, lock.value, long)
        const extended = await lock.extend(3 * long)
        assert.equal(lock.expiration, 0)
        assert.equal(extended.value, lock.value)
        for (const key of keys) await assertKept(clients, key, lock.value, 3 * long)
        const { attempts, start } = await extended.release()
        assert.ok(start > 0)
        const stats = await attempts[0]
        assert.equal(stats.membershipSize, clients.length)
        assert.equal(stats.quorumSize, Math.floor(clients.length / 2) + 1)
        assert.deepEqual([...stats.votesFor], clients)
        assert.equal(extended.expiration, 0)
        for (const key of keys) await assertGone(clients, key)
        await assert.rejects(extended.release(), ExecutionError)
        await assert.rejects(extended.extend(5_000), /^ExecutionError: Cannot extend an already-expired lock\.$/)
      }
      await redlock.quit()
    }),
  )

  test(`locks exclude each other on ${name}`, { skip }, () =>
    withClients(urls, async (clients) => {
      const redlock = new Redlock(clients, { retryDelay: 10, retryJitter: 5 })
      const emitted = []
      redlock.on('error', (error) => emitted.push(error))
      const [one, two, three] = [unique('{r}1'), unique('{r}2'), unique('{r}3')]
      const lock = await redlock.acquire([one, two], long)
      const error = await redlock.acquire([two, three], long).catch((error) => error)
      assert.ok(error instanceof ExecutionError)
      assert.equal(error.message, 'The operation was unable to achieve a quorum during its retry window.')
      assert.equal(error.attempts.length, 11)
      for (const attempt of error.attempts) {
        const { votesAgainst } = await attempt
        assert.ok(votesAgainst.size > 0)
        for (const vote of votesAgainst.values()) {
          assert.ok(vote instanceof ResourceLockedError)
          assert.equal(vote.message, 'The operation was applied to: 0 of the 2 requested resources.')
        }
      }
      assert.deepEqual(emitted, [], 'a busy lock is no error')
      await assertGone(clients, three)
      await assertKept(clients, two, lock.value, long)
      const few = await redlock.acquire([two], long, { retryCount: 0 }).catch((error) => error)
      assert.equal(few.attempts.length, 1)
      await lock.release()
      await redlock.quit()
    }),
  )

  test(`locks expire on ${name}`, { skip }, () =>
    withClients(urls, async (clients) => {
      const redlock = new Redlock(clients)
      const key = unique('{r}expire')
      const lock = await redlock.acquire([key], 200)
      await eventually('it expired', () => lock.expiration < Date.now())
      const next = await redlock.acquire([key], 5_000)
      await assert.rejects(lock.release(), ExecutionError)
      await assertKept(clients, key, next.value, 5_000)
      await next.release()
      await redlock.quit()
    }),
  )

  test(`using extends, is exclusive and releases on ${name}`, { skip }, () =>
    withClients(urls, async (clients) => {
      const redlock = new Redlock(clients)
      const key = unique('{r}using')
      let inside = 0
      const values = await Promise.all(
        [1, 2].map(() =>
          redlock.using([key], 3_000, { automaticExtensionThreshold: 2_500, retryCount: 100 }, async (signal) => {
            assert.equal(++inside, 1)
            const value = await majority(clients, key)
            await extended(clients[0], key)
            assert.equal(signal.aborted, false)
            assert.equal(signal.error, undefined)
            assert.equal(await majority(clients, key), value)
            inside--
            return value
          }),
        ),
      )
      assert.notEqual(values[0], values[1])
      await assertGone(clients, key)
      await redlock.quit()
    }),
  )

  test(`using holds on while the event loop is blocked on ${name}`, { skip }, () =>
    withClients(urls, async (clients) => {
      const redlock = new Redlock(clients)
      const result = await redlock.using(
        [unique('{r}block')],
        1_800,
        { automaticExtensionThreshold: 100 },
        async (signal) => {
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 4_000)
          await sleep(50)
          return signal.aborted
        },
      )
      assert.equal(result, false)
      await redlock.quit()
    }),
  )

  test(`a lock that another process made is released by its value on ${name}`, { skip }, () =>
    withClients(urls, async (clients) => {
      const redlock = new Redlock(clients)
      const keys = [unique('{r}sent'), unique('{r}sent')]
      const make = async () => {
        await Promise.all(clients.flatMap((client) => keys.map((key) => client.set(key, 'theirs', 'PX', 60_000))))
      }
      const until = Date.now() + 60_000
      const releases = {
        'the class of redlock 4': () => redlock.unlock(new Redlock.Lock(redlock, keys, 'theirs', until)),
        'the class of redlock 5': () => new Lock(redlock, keys, 'theirs', [], until).release(),
        'fields of redlock 4': () => redlock.unlock({ resource: keys, value: 'theirs' }),
        'fields of redlock 5': () => redlock.release({ resources: keys, value: 'theirs' }),
      }
      for (const [how, release] of Object.entries(releases)) {
        await make()
        await release()
        for (const key of keys) await assertGone(clients, key)
        await assert.rejects(release(), how.endsWith('4') ? LockError : ExecutionError, how)
      }
      await make()
      await assert.rejects(redlock.unlock({ resource: keys, value: 'other' }), LockError)
      for (const key of keys) await assertKept(clients, key, 'theirs', 60_000)
      await Promise.all(clients.map((client) => client.del(...keys)))
      await redlock.quit()
    }),
  )

  test(`a lock that another process made is extended by its value on ${name}`, { skip }, () =>
    withClients(urls, async (clients) => {
      const redlock = new Redlock(clients, { retryCount: 0 })
      const keys = [unique('{r}sent'), unique('{r}sent')]
      const until = Date.now() + 60_000
      const extensions = {
        'the class of redlock 4': (value) => new Redlock.Lock(redlock, keys, value, until).extend(long),
        'the class of redlock 5': (value) => new Lock(redlock, keys, value, [], until).extend(long),
        'fields of redlock 4': (value) => redlock.extend({ resource: keys, value, expiration: until }, long),
        'fields of redlock 5': (value) => redlock.extend({ resources: keys, value, expiration: until }, long),
        'the inner method of redlock 4': (value) => redlock._lock(keys, value, long),
      }
      for (const [how, extend] of Object.entries(extensions)) {
        await Promise.all(clients.flatMap((client) => keys.map((key) => client.set(key, 'theirs', 'PX', 60_000))))
        const lock = await extend('theirs')
        for (const key of keys) await assertKept(clients, key, 'theirs', long)
        assert.ok(lock.expiration > Date.now() + long / 2 && lock.expiration < Date.now() + long, how)
        const kind = how.endsWith('5') ? ExecutionError : LockError
        await assert.rejects(extend('other'), kind, how)
        for (const key of keys) await assertKept(clients, key, 'theirs', long)
        // Of several all must be there, and what is gone does not come back.
        await Promise.all(clients.map((client) => client.del(keys[1])))
        await assert.rejects(extend('theirs'), kind, how)
        await assertGone(clients, keys[1])
      }
      await Promise.all(clients.map((client) => client.del(...keys)))
      await redlock.quit()
    }),
  )

  test(`using tells of a loss, but never hides what the routine threw, on ${name}`, { skip }, () =>
    withClients(urls, async (clients) => {
      const redlock = new Redlock(clients)
      const settings = { automaticExtensionThreshold: 100 }
      const key = unique('{r}lost')
      const lose = async (signal) => {
        await Promise.all(clients.map((client) => client.del(key)))
        await aborted(signal)
        assert.ok(signal.error instanceof ExecutionError)
        assert.equal(signal.reason, signal.error)
        // What is told is how the extension failed, and not how the lock was won.
        const [{ votesFor, votesAgainst }] = await Promise.all(signal.error.attempts)
        assert.equal(votesFor.size, 0)
        for (const client of clients) assert.ok(votesAgainst.get(client) instanceof ResourceLockedError)
      }
      await assert.rejects(redlock.using([key], 2_000, settings, lose), ExecutionError)
      const thrown = new RangeError('from the routine')
      const throwing = redlock.using([key], 2_000, settings, async (signal) => {
        await lose(signal)
        throw thrown
      })
      await assert.rejects(throwing, thrown)
      await redlock.quit()
    }),
  )
}

test('durations are whole numbers, and longer than the threshold', { skip }, async () => {
  const redlock = new Redlock([redisUrl])
  const message = 'Duration must be an integer value in milliseconds.'
  await assert.rejects(redlock.acquire(['x'], 0.5), { message })
  await assert.rejects(
    redlock.using(['x'], 0.5, async () => {}),
    { message },
  )
  await assert.rejects(
    redlock.using(['x'], 500, async () => {}),
    /at least 100ms greater than the `automaticExtensionThreshold`/,
  )
  await redlock.quit()
})

test('what the engine does not take is told as redlock tells of a lock that it did not get', { skip }, async () => {
  const redlock = new Redlock([redisUrl])
  for (const [resource, duration] of [
    ['x', 0],
    ['x', -1],
    ['', 1_000],
    ['x'.repeat(2_000), 1_000],
  ]) {
    const invalid = (kind) => (error) => error instanceof kind && error.cause instanceof InvalidArgumentError
    await assert.rejects(redlock.lock(resource, duration), invalid(LockError))
    await assert.rejects(redlock.acquire([resource], duration), invalid(ExecutionError))
  }
  const lock = await redlock.lock(unique('{r}ttl'), '1000')
  assert.equal(await lock.extend('30000'), lock)
  assert.ok(lock.expiration > Date.now() + 20_000 && lock.expiration < Date.now() + 30_000)
  await assert.rejects(lock.extend('soon'), LockError)
  for (const ttl of [undefined, null, '']) {
    await assert.rejects(redlock.lock('x', ttl), TypeError)
    await assert.rejects(lock.extend(ttl), TypeError)
  }
  for (const resource of [undefined, null, {}, Symbol('x')])
    await assert.rejects(redlock.lock(resource, 1_000), TypeError)
  await lock.unlock()
  await redlock.quit()
})

test('a callback may stand in the place of the options', { skip }, async () => {
  const redlock = new Redlock([redisUrl])
  for (const method of ['lockWithOptions', 'acquireWithOptions', '_lock']) {
    const key = unique('{r}callback')
    const first = method === '_lock' ? [key, null] : [key]
    const lock = await new Promise((resolve, reject) =>
      redlock[method](...first, 5_000, (error, lock) => (error ? reject(error) : resolve(lock))),
    )
    await lock.unlock()
  }
  await redlock.quit()
})

test('a client that is given twice is one', { skip }, () =>
  withClients([redisUrl], async ([client]) => {
    const redlock = new Redlock([client, client])
    const lock = await redlock.acquire([unique('{r}twice')], 5_000)
    const [{ membershipSize, votesFor }] = await Promise.all(lock.attempts)
    assert.deepEqual([membershipSize, [...votesFor]], [1, [client]])
    await lock.release()
    await redlock.quit()
  }),
)

test('errors have their message in their JSON', () => {
  const makes = [
    () => new LockError('why', 3),
    () => new ExecutionError('why', []),
    () => new ResourceLockedError('why'),
  ]
  for (const make of makes) {
    // V8 may do it another way when it has done it often.
    for (let round = 0; round < 100; round++) {
      const error = make()
      const { name, message, attempts } = error
      assert.deepEqual(JSON.parse(JSON.stringify(error)), JSON.parse(JSON.stringify({ name, message, attempts })))
      assert.equal(message, 'why')
      assert.match(error.stack, /why/)
    }
  }
})

test('names may be what has a text, and there may be none', { skip }, () =>
  withClients([redisUrl], async ([client]) => {
    const redlock = new Redlock([client])
    const id = Date.now()
    const key = unique('{r}id')
    for (const resource of [id, BigInt(id), { toString: () => key }]) {
      const lock = await redlock.lock(resource, 5_000)
      assert.deepEqual(lock.resource, [resource])
      assert.equal(await client.get(String(resource)), lock.value)
      await lock.unlock()
      const other = await redlock.acquire([resource, resource], 5_000)
      await other.release()
      assert.equal(await client.exists(String(resource)), 0)
    }
    // Nothing is held by nobody else.
    const nothing = await redlock.acquire([], 5_000)
    await (await nothing.extend(5_000)).release()
    await (await redlock.lock([], 5_000)).unlock()
    assert.equal(await redlock.using([], 5_000, async (signal) => signal.aborted), false)
    await redlock.quit()
  }),
)

test('the drift of one call is taken off', { skip }, async () => {
  const redlock = new Redlock([redisUrl])
  let lock = await redlock.acquire([unique('{r}drift')], 10_000, { driftFactor: 0.5 })
  assert.ok(lock.expiration > Date.now() && lock.expiration < Date.now() + 5_000)
  lock = await redlock.extend(lock, 20_000, { driftFactor: 0.5 })
  assert.ok(lock.expiration > Date.now() + 5_000 && lock.expiration < Date.now() + 10_000)
  await lock.release()
  await redlock.quit()
})

test('a server out of reach is told as redlock tells it', { skip }, async () => {
  const redlock = new Redlock(['redis://127.0.0.1:1'], { retryDelay: 1, retryJitter: 0 })
  const emitted = []
  redlock.on('error', (error) => emitted.push(error))
  const error = await redlock.acquire(['x'], 10_000).catch((error) => error)
  assert.ok(error instanceof ExecutionError)
  assert.equal(error.attempts.length, 11)
  for (const attempt of error.attempts) {
    for (const vote of (await attempt).votesAgainst.values()) assert.equal(vote.message, 'Connection is closed.')
  }
  assert.equal(emitted.length, 11)
  const of4 = await redlock.lock('x', 10_000).catch((error) => error)
  assert.ok(of4 instanceof LockError)
  assert.equal(of4.attempts, 11)
  await redlock.quit()
})

test('a minority of servers that refuse does no harm, a majority does', { skip }, () =>
  withClients(sets['three servers'], async (clients) => {
    const redlock = new Redlock(clients, { retryDelay: 1, retryJitter: 0 })
    const [few, many] = [unique('{r}few'), unique('{r}many')]
    await clients[2].set(few, 'other')
    const lock = await redlock.acquire([few], long)
    await assertKept(clients, few, lock.value, long)
    const extended = await lock.extend(3 * long)
    await assertKept(clients, few, lock.value, 3 * long)
    assert.equal(await clients[2].get(few), 'other')
    await extended.release()
    assert.equal(await clients[2].get(few), 'other')
    assert.equal(await clients[2].pttl(few), -1)
    await Promise.all(clients.slice(1).map((client) => client.set(many, 'other')))
    await assert.rejects(redlock.acquire([many], long), ExecutionError)
    await assertGone(clients.slice(0, 1), many)
    assert.equal(await clients[1].get(many), 'other')
    await Promise.all(clients.map((client) => client.del(few, many)))
    await redlock.quit()
  }),
)

test('what a minority granted is given back before a failure is told', { skip }, () =>
  withClients(sets['three servers'], async (clients) => {
    const redlock = new Redlock(clients, { retryCount: 0 })
    const rounds = 200
    let left = 0
    for (let round = 0; round < rounds; round++) {
      const key = unique('{r}given-back')
      await Promise.all(clients.slice(1).map((client) => client.set(key, 'other', 'EX', 60)))
      await assert.rejects(redlock.acquire([key], 10_000), ExecutionError)
      left += await clients[0].exists(key)
    }
    // It is waited for no longer than a moment, and this machine may be slow. Else it would be one time in six, or more often.
    assert.ok(left < rounds / 20, `${left} of ${rounds}`)
    await redlock.quit()
  }),
)

test('a lock by its value lasts as long as a majority keeps it, and no longer', { skip }, () =>
  withClients(nodes.slice(0, 3), async (clients) => {
    const redlock = new Redlock(clients, { retryCount: 0 })
    const key = unique('{r}majority')
    const lock = new Lock(redlock, [key], 'theirs', [], Date.now() + 60_000)
    await Promise.all(clients.map((client) => client.set(key, 'theirs', 'PX', 60_000)))
    await clients[0].set(key, 'another')
    const extended = await lock.extend(long)
    await assertKept(clients, key, 'theirs', long)
    assert.equal(await clients[0].get(key), 'another')
    await clients[1].del(key)
    await assert.rejects(extended.extend(long), ExecutionError)
    assert.ok(extended.expiration > Date.now(), 'it is as it was')
    await Promise.all(clients.map((client) => client.del(key)))
    await redlock.quit()
  }),
)

// What counts the objects of a class came with Node 20.13.
test('locks that lapse leave nothing behind', { skip: skip || queryObjects === undefined }, async () => {
  const redlock = new Redlock([redisUrl])
  const locks = connect('memory:')
  const held = await locks.acquire('held')
  const leases = () => queryObjects(held.constructor, { format: 'count' })
  const before = leases()
  for (let round = 0; round < 50; round++) await redlock.acquire([unique('{r}lapse')], 200)
  await eventually('they are gone', () => leases() <= before)
  await held.release()
  await locks.close()
  await redlock.quit()
})

test('an even split is an answer and no hang', { skip }, () =>
  withClients(nodes.slice(0, 2), async (clients) => {
    const redlock = new Redlock(clients, { retryCount: 2, retryDelay: 1, retryJitter: 0 })
    const key = unique('{r}even')
    await clients[0].set(key, 'other')
    await assert.rejects(redlock.acquire([key], 5_000), ExecutionError)
    await clients[0].del(key)
    const lock = await redlock.acquire([key], 5_000)
    await lock.release()
    await redlock.quit()
  }),
)

test('an extension that fails leaves the locks of others alone', { skip }, () =>
  withClients([redisUrl], async ([client]) => {
    const redlock = new Redlock([client], { retryCount: 0 })
    const key = unique('{r}extend')
    const lock = await redlock.lock(key, 10_000)
    await client.set(key, 'other', 'PX', 10_000)
    await assert.rejects(lock.extend(20_000), LockError)
    assert.equal(await client.get(key), 'other')
    await assert.rejects(lock.unlock(), LockError)
    assert.equal(await client.get(key), 'other')
    await client.del(key)
    await redlock.quit()
  }),
)

test('retryCount 0 and -1 are taken as they are', { skip }, async () => {
  const redlock = new Redlock([redisUrl], { retryDelay: 5, retryJitter: 0 })
  const key = unique('{r}retry')
  const lock = await redlock.lock(key, 10_000)
  const error = await redlock.lockWithOptions(key, 1_000, { retryCount: 0 }).catch((error) => error)
  assert.equal(error.attempts, 1)
  const waiting = redlock.lockWithOptions(key, 1_000, { retryCount: -1 })
  await sleep(1_000)
  await lock.unlock()
  const next = await waiting
  assert.ok(next.attempts > 11, String(next.attempts))
  for (const retryCount of [NaN, -5]) {
    const once = await redlock.lockWithOptions(key, 1_000, { retryCount }).catch((error) => error)
    assert.equal(once.attempts, 1)
  }
  await next.unlock()
  await redlock.quit()
})

/** Runs `body` with a way to the Redis that it can close and open again, and a client that goes another one. */
const withWay = (body) =>
  withClients([redisUrl], async ([client]) => {
    const [port, sockets] = [await closedPort(), new Set()]
    let way
    const open = async () => {
      way = createServer((near) => {
        const far = dial(Number(new URL(redisUrl).port), '127.0.0.1')
        for (const socket of [near, far]) sockets.add(socket.on('error', () => {}))
        near.pipe(far).pipe(near)
      }).listen(port, '127.0.0.1')
      await once(way, 'listening')
    }
    const close = async () => {
      way.close()
      for (const socket of sockets) socket.destroy()
      await once(way, 'close')
    }
    await open()
    await body({ url: `redis://127.0.0.1:${port}`, client, open, close })
    await close()
  })

test('a release goes on when the server is back', { skip }, () =>
  withWay(async ({ url, client, open, close }) => {
    const settings = { retryCount: 200, retryDelay: 50, retryJitter: 0 }
    const redlock = new Redlock([url], settings)
    const key = unique('{r}back')
    const lock = await redlock.acquire([key], 60_000)
    await close()
    const told = once(redlock, 'clientError')
    const released = redlock.release(lock)
    const [error] = await told
    assert.equal(error.message, 'Connection is closed.')
    await open()
    const { attempts } = await released
    assert.ok(attempts.length > 1)
    assert.equal(await client.exists(key), 0)
    await redlock.quit()
  }),
)

test('who waits for a holder is told that the server is gone, and goes on when it is back', { skip }, () =>
  withWay(async ({ url, client, open, close }) => {
    const redlock = new Redlock([url], { retryCount: -1, retryDelay: 20, retryJitter: 0 })
    const key = unique('{r}waits')
    await client.set(key, 'other')
    const waiting = redlock.acquire([key], 60_000)
    await eventually('it asks', async () => /cmd=evalsha/.test(await client.client('LIST')))
    const told = once(redlock, 'error')
    await close()
    const [error] = await told
    assert.equal(error.message, 'Connection is closed.')
    await client.del(key)
    await open()
    await (await waiting).release()
    await redlock.quit()
  }),
)

test('after quit there are the errors of redlock, and clients may be closed already', { skip }, () =>
  withClients([redisUrl], async ([client]) => {
    const redlock = new Redlock([client])
    await client.ping()
    const lock = await redlock.acquire([unique('{r}quit')], 5_000)
    client.disconnect()
    await once(client, 'end')
    await assert.rejects(redlock.quit(), /Connection is closed/)
    const error = await redlock.acquire(['x'], 5_000).catch((error) => error)
    assert.ok(error instanceof ExecutionError)
    assert.equal([...(await error.attempts[0]).votesAgainst.values()][0].message, 'Connection is closed.')
    await assert.rejects(redlock.lock('x', 5_000), LockError)
    await assert.rejects(lock.release(), ExecutionError)
  }),
)

test('a Redlock for each request costs one connection', { skip }, () =>
  withClients([redisUrl], async ([client]) => {
    // A database that no other test is connected to.
    const url = `${redisUrl}/9`
    const connections = async () => (await client.client('LIST')).split('\n').filter((line) => / db=9 /.test(line))
    const redlocks = Array.from({ length: 50 }, () => new Redlock([url]))
    for (const redlock of redlocks) await (await redlock.lock(unique('{r}many'), 5_000)).unlock()
    // One for locks, and perhaps one of the engine's.
    const many = await connections()
    assert.ok(many.length >= 1 && many.length <= 2, many.join('\n'))
    // The others go on when one is quit, and the last one closes it.
    const last = redlocks.pop()
    for (const redlock of redlocks) {
      await redlock.quit()
      await redlock.quit()
      await assert.rejects(redlock.lock('x', 5_000), LockError)
    }
    await (await last.lock(unique('{r}many'), 5_000)).unlock()
    await last.quit()
    await eventually('it is closed', async () => (await connections()).length === 0)
    await (await new Redlock([url]).lock(unique('{r}many'), 5_000)).unlock()
  }),
)

test('whoever has a callback need not look at the promise', { skip }, async () => {
  const source = `
    require('bluebird') // whose promises it gives
    const Redlock = require('polylock/redlock')
    process.on('unhandledRejection', (error) => { console.log('unhandled', error); process.exit(1) })
    const [url, key] = process.argv.slice(1)
    const redlock = new Redlock([url], { retryCount: 0 })
    redlock.lock(key, 5000, (error, lock) => {
      redlock.lock(key, 5000, (error) => {
        lock.unlock((...told) => setTimeout(() => console.log(error.name, told), 20))
      })
    })`
  const { status, output } = await runNode(source, { type: 'commonjs', args: [redisUrl, unique('{r}callback')] })
  assert.equal(output, 'LockError [ null ]\n')
  assert.equal(status, 0)
})

test('an event loop that is blocked for 10 s loses the lock of redlock 5, and none of ours', { skip }, () =>
  withClients([redisUrl], async ([client]) => {
    const settings = { retryCount: 0, automaticExtensionThreshold: 500 }
    const [ours, theirs] = [new Redlock([client], settings), new (require('redlock5').default)([client], settings)]
    const locks = connect(redisUrl)
    const [native, dropIn, original] = [unique('{r}block'), unique('{r}block'), unique('{r}block')]
    const ttl = 2_000
    const lease = await locks.acquire(native, { ttl })
    const left = []
    const lost = theirs.using([original], ttl, async (signal) => {
      await ours.using([dropIn], ttl, async (own) => {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10_000)
        for (const key of [native, dropIn, original]) left.push(await client.pttl(key))
        await sleep(100)
        assert.equal(own.aborted, false)
      })
      assert.equal(signal.aborted, true)
    })
    await assert.rejects(lost, { name: 'ExecutionError' })
    assert.equal(lease.isHeld, true)
    assert.equal(lease.signal.aborted, false)
    // Both of ours were renewed not long ago; theirs is gone.
    assert.ok(left[0] > 0 && left[1] > 0, String(left))
    assert.equal(left[2], -2)
    assert.equal(await lease.release(), 'released')
    await locks.close()
    await ours.quit()
  }),
)

for (const [original, make] of Object.entries({
  'redlock 4': (client) => new (require('redlock4'))([client], { retryCount: 0 }),
  'redlock 5': (client) => new (require('redlock5').default)([client], { retryCount: 0 }),
})) {
  test(`excludes ${original} and is excluded by it`, { skip }, () =>
    withClients([redisUrl], async ([client]) => {
      const [ours, theirs] = [new Redlock([client], { retryCount: 0 }), make(client)]
      theirs.on('error', () => {})
      const key = unique('{r}both')
      const mine = await ours.acquire([key], 10_000)
      await assert.rejects(theirs.acquire([key], 10_000))
      await mine.release()
      const other = await theirs.acquire([key], 10_000)
      await assert.rejects(ours.acquire([key], 10_000), ExecutionError)
      const locks = connect(redisUrl)
      assert.equal((await locks.inspect(key)).owner, other.value)
      await (other.release ?? other.unlock).call(other)
      await (await ours.acquire([key], 10_000)).release()
      await locks.close()
      await ours.quit()
    }),
  )
}

test('the settings of clients are read', { skip }, async (context) => {
  const { hostname, port } = new URL(redisUrl)
  const at = { host: hostname, port: Number(port) }
  const clients = {
    'a URL': () => redisUrl,
    'a URL of its class': () => new URL(`${redisUrl}/3`),
    'an object with a URL': () => ({ url: `${redisUrl}/3` }),
    'an object of settings': () => ({ ...at, db: 3 }),
    'an object of settings of node-redis 3': () => ({ ...at, database: 3, prefix: 'p:' }),
    'an object of settings of node-redis 4': () => ({ socket: at, database: 3 }),
    'ioredis 5': () => new Redis({ ...at, db: 3, keyPrefix: 'p:' }),
    'ioredis 6': () => new (require('ioredis6').Redis)({ ...at, db: 3, keyPrefix: 'p:' }),
    'ioredis 4': () => new (require('ioredis4'))({ ...at, db: 3, keyPrefix: 'p:' }),
    'node-redis 3': () => require('redis3').createClient({ ...at, db: 3, prefix: 'p:' }),
    'node-redis 4': () => require('redis4').createClient({ socket: at, database: 3 }),
    'node-redis 5': () => require('redis5').createClient({ url: `${redisUrl}/3` }),
    'node-redis 6': () => require('redis6').createClient({ url: `${redisUrl}/3` }),
  }
  for (const [name, make] of Object.entries(clients)) {
    await context.test(name, async () => {
      const client = make()
      client.on?.('error', () => {})
      const redlock = new Redlock([client])
      const key = unique('{r}client')
      const lock = await redlock.acquire([key], 10_000)
      const database = name === 'a URL' ? 0 : 3
      const prefix = /ioredis|3$/.test(name) && database === 3 ? 'p:' : ''
      await withClients([`${redisUrl}/${database}`], async ([plain]) => {
        assert.equal(await plain.get(prefix + key), lock.value)
      })
      await lock.release()
      // The clients of node-redis 4 and 5 were never connected.
      if (client.isOpen !== false) (client.end ?? client.disconnect)?.call(client, true)
    })
  }
})

test('a client of ioredis is followed to the database that it selected', { skip }, () =>
  withClients([redisUrl, `${redisUrl}/3`], async ([client, third]) => {
    for (const ioredis of [Redis, require('ioredis4')]) {
      const selecting = new ioredis(redisUrl)
      await selecting.select(3)
      const redlock = new Redlock([selecting])
      const key = unique('{r}select')
      const lock = await redlock.acquire([key], 10_000)
      assert.equal(await third.get(key), lock.value)
      assert.equal(await client.exists(key), 0)
      await lock.release()
      await redlock.quit()
    }
  }),
)

test('a password is read from a client', { skip: process.env.POLYLOCK_TEST_REDIS_AUTH === undefined }, () =>
  withClients([process.env.POLYLOCK_TEST_REDIS_AUTH], async ([client]) => {
    const redlock = new Redlock([client], { retryCount: 0 })
    await (await redlock.acquire([unique('{r}auth')], 10_000)).release()
    await redlock.quit()
  }),
)

test('a client that cannot be read is an error at once', () => {
  const cannot = (clients, why) =>
    assert.throws(
      () => new Redlock(clients),
      (error) => error instanceof InvalidArgumentError && error.argument === 'clients' && why.test(error.message),
    )
  cannot([{}], /no settings/)
  // None of them is a client, or one whose server is known: a fake of tests, another kind of client, a wrapper.
  cannot([{ isOpen: true }], /no settings/)
  cannot([{ options: { host: 'localhost', port: 6379 }, evalsha() {} }], /no settings/)
  cannot([{ connection_options: {} }], /no settings/)
  cannot([new (require('pg').Client)('postgres://localhost/x')], /no settings/)
  cannot([{ host: 'user@localhost' }], /its host is user@localhost/)
  cannot([5], /neither a URL nor an object/)
  cannot([null], /null/)
  const { Cluster } = require('ioredis')
  const natMap = { '10.0.0.1:1': { host: '127.0.0.1', port: 1 } }
  cannot([new Cluster(['redis://127.0.0.1:1'], { lazyConnect: true, natMap })], /natMap/)
  cannot([new Cluster([{ host: 'redis.example' }], { lazyConnect: true, useSRVRecords: true })], /SRV/)
  const logins = [
    { host: 'a', password: 'x' },
    { host: 'b', password: 'y' },
  ]
  cannot([new Cluster(logins, { lazyConnect: true })], /different logins/)
  cannot([new Redis({ lazyConnect: true, Connector: class {} })], /Connector/)
  const sentinels = [{ host: '127.0.0.1', port: 1 }]
  cannot([new Redis({ sentinels, name: 'm', role: 'slave', lazyConnect: true })], /replica/)
  cannot([new Redis({ sentinels, name: 'm', enableTLSForSentinelMode: true, lazyConnect: true })], /TLS/)
  cannot([new Redis({ tls: { ca: 'x' }, lazyConnect: true })], /TLS option ca/)
  cannot([new Redis({ tls: { rejectUnauthorized: false }, lazyConnect: true })], /does not verify/)
  cannot([new Redis({ host: 'a', tls: { servername: 'b' }, lazyConnect: true })], /another name/)
  new Redlock([new Redis({ host: 'a', tls: { servername: 'a' }, lazyConnect: true })])
  const { createClient, createClientPool, createCluster, createSentinel } = require('redis5')
  cannot([require('redis4').createCluster({ rootNodes: [{ url: 'redis://a' }] })], /an older createCluster/)
  cannot([createClientPool({ url: 'redis://a' })], /createClientPool/)
  cannot([createSentinel({ name: 'm', sentinelRootNodes: [{ host: 'a', port: 1 }] })], /createSentinel/)
  const rootNodes = [{ url: 'redis://a' }]
  cannot([createCluster({ rootNodes, nodeAddressMap: {} })], /nodeAddressMap/)
  cannot([createCluster({ rootNodes, defaults: { socket: { tls: true, ca: 'x' } } })], /TLS option ca/)
  const credentialsProvider = { type: 'async-credentials-provider', credentials: async () => ({ password: 'x' }) }
  cannot([createClient({ credentialsProvider })], /credentials provider/)
  cannot([createCluster({ rootNodes, defaults: { credentialsProvider } })], /credentials provider/)
  new Redlock([createClient({ username: 'u', password: 'p' }), createClient({ url: 'redis://u:p@b' })])
  cannot([{ url: 'redis://a', database: 3 }], /database/)
  cannot(
    [new Redis({ keyPrefix: 'a:', lazyConnect: true }), new Redis({ lazyConnect: true })],
    /different key prefixes/,
  )
  assert.throws(() => new Redlock([]), /at least one redis client/)
  for (const clients of ['redis://localhost', undefined, null, 5, {}]) {
    assert.throws(() => new Redlock(clients), /^TypeError: clients must be an array, not /)
  }
  assert.throws(() => new Redlock(['nonsense://x']), InvalidArgumentError)
})

test('both ways of loading give the class, and no timer is left', { skip }, async () => {
  const source = `
    const Redlock = require('polylock/redlock')
    if (Redlock.default !== Redlock || typeof Redlock.LockError !== 'function') throw new Error('require')
    import('polylock/redlock').then(async (module) => {
      if (module.default !== Redlock || module.ExecutionError !== Redlock.ExecutionError) throw new Error('import')
      const redlock = new Redlock([process.argv[1]])
      await redlock.using([process.argv[2]], 30000, async () => {})
      await redlock.acquire([process.argv[2]], 30000)
      console.log('done')
    })`
  const { status, output, errors, took } = await runNode(source, {
    type: 'commonjs',
    args: [redisUrl, unique('{r}load')],
  })
  assert.equal(status, 0, errors)
  assert.equal(output.trim(), 'done')
  assert.ok(took < 15_000)
})

test('a lock outlives quit, the process and its worker until its time is over', { skip }, () =>
  withClients([redisUrl], async ([client]) => {
    const key = unique('{r}stays')
    const redlock = new Redlock([redisUrl])
    const lock = await redlock.lock(key, 20_000)
    await redlock.quit()
    assert.equal(await client.get(key), lock.value)
    await assert.rejects(lock.unlock(), LockError)
    const source = `
      const { Worker } = require('node:worker_threads')
      const Redlock = require('polylock/redlock')
      const [url, key] = process.argv.slice(1)
      const work = (key) => new Redlock([url]).lock(key, 20000)
      work(key + '-process').then(() => {
        const source = "const Redlock = require('polylock/redlock'); const { url, key } = require('node:worker_threads').workerData;" +
          "new Redlock([url]).lock(key, 20000).then(() => console.log('locked'))"
        new Worker(source, { eval: true, execArgv: [], workerData: { url, key: key + '-worker' } })
      })`
    const { status, errors } = await runNode(source, { type: 'commonjs', args: [redisUrl, key] })
    assert.equal(status, 0, errors)
    for (const end of ['', '-process', '-worker']) {
      const left = await client.pttl(key + end)
      assert.ok(left > 0 && left <= 20_000, `${end}: ${left}`)
    }
    await client.del(key, `${key}-process`, `${key}-worker`)
  }),
)
