// What happens to leases while JavaScript does something else, or stops waiting.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readlinkSync } from 'node:fs'
import { test } from 'node:test'
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises'

import { connect, LockLostError } from 'polylock'

import { aborted, backends, closedPort, eventually, shared, unique, withRedis } from './support.mjs'

/** Blocks this thread: no timer, no socket of this loop is served. */
const block = (ms) => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

/** How many sockets this process has open. */
const openSockets = () =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith('socket:')
    } catch {
      return false // the folder itself, which is closed by now
    }
  }).length

for (const { name, url } of backends) {
  test(`a lease outlives an event loop that is blocked for three ttls on ${name}`, async () => {
    const address = shared(url)
    const [locks, others] = [connect(address), connect(address)]
    const resource = unique('blocked')
    const ttl = 700
    const lease = await locks.acquire(resource, { ttl })
    block(3 * ttl)
    assert.equal(lease.isHeld, true)
    assert.equal(lease.loss, null)
    assert.equal(lease.signal.aborted, false)
    assert.equal((await locks.inspect(resource)).owner, lease.ownerToken)
    assert.equal(await others.tryAcquire(resource), null)
    assert.equal(await lease.release(), 'released')
    await Promise.all([locks.close(), others.close()])
  })

  test(`a loss is known right after the event loop was blocked past the deadline on ${name}`, async () => {
    const locks = connect(shared(url))
    const lease = await locks.acquire(unique('late'), { ttl: 200, autoExtend: false })
    const { signal } = lease
    assert.equal(signal.aborted, false)
    block(300)
    assert.equal(lease.isHeld, false)
    assert.equal(lease.remaining, 0)
    assert.equal(lease.loss, 'expired')
    // Not only by its own event.
    assert.equal(lease.signal.aborted, true)
    assert.ok(lease.signal.reason instanceof LockLostError)
    await assert.rejects(lease.extend(), LockLostError)
    assert.equal(await lease.release(), 'not_held')
    assert.equal(lease.loss, 'expired')
    await locks.close()
  })

  test(`an acquire that is aborted at any step leaves nothing on ${name}`, async () => {
    const address = shared(url)
    const [locks, others] = [connect(address), connect(address)]
    // A ttl that cannot hide a lock that was left.
    const ttl = 3_600_000
    const outcomes = { won: 0, aborted: 0 }
    await (await locks.acquire(unique('warm'))).release()
    for (const busy of [false, true]) {
      for (let step = 0; step < 40; step++) {
        const resource = unique('abort')
        const holder = busy ? await others.acquire(resource, { ttl }) : null
        const controller = new AbortController()
        const reason = new Error(`at step ${step}`)
        const pending = locks.acquire(resource, { ttl, signal: controller.signal })
        // A step is a part of a turn of the loop: a number of turns, and of microtasks.
        for (let turns = 0; turns < step >> 2; turns++) await turn()
        for (let tasks = 0; tasks < (step & 3); tasks++) await null
        // A holder that releases at the same time makes the abort meet the win.
        const released = step % 2 === 0 ? holder?.release() : undefined
        controller.abort(reason)
        try {
          const lease = await pending
          outcomes.won++
          assert.equal(lease.isHeld, true)
          assert.equal(await lease.release(), 'released')
        } catch (error) {
          assert.equal(error, reason)
          outcomes.aborted++
        }
        await (released ?? holder?.release())
        const next = await others.acquire(resource, { wait: 20_000 })
        await next.release()
        // A request that was on its way when it was given up may come later than that; then it is undone.
        await eventually('nothing is left', async () => (await others.inspect(resource)) === null)
        assert.equal(locks.waiting(resource), 0)
      }
    }
    assert.ok(outcomes.aborted > 0, JSON.stringify(outcomes))
    await Promise.all([locks.close(), others.close()])
  })

  test(`aborting one of many waiters takes out that one on ${name}`, async () => {
    const locks = connect(shared(url))
    const resource = unique('many')
    const holder = await locks.acquire(resource)
    const controllers = Array.from({ length: 20 }, () => new AbortController())
    const waiters = controllers.map(({ signal }) => locks.acquire(resource, { signal }).catch((error) => error))
    await eventually('all wait', () => locks.waiting(resource) >= 20)
    controllers.forEach((controller, index) => index % 2 === 0 && controller.abort('odd ones stay'))
    await holder.release()
    let won = 0
    for (const waiter of waiters) {
      const lease = await waiter
      if (lease === 'odd ones stay') continue
      won++
      await lease.release()
    }
    assert.equal(won, 10)
    await locks.close()
  })

  test(`the signal fires by itself on ${name}`, async () => {
    const locks = connect(shared(url))
    const lease = await locks.acquire(unique('signal'), { ttl: 100, autoExtend: false })
    const timer = setTimeout(() => lease, 60_000) // and so it is not collected
    await aborted(lease.signal)
    clearTimeout(timer)
    assert.ok(lease.signal.reason instanceof LockLostError)
    assert.equal(lease.signal.reason.reason, 'expired')
    await locks.close()
  })
}

test('a listener of a loss may do anything', async () => {
  const locks = connect('memory:')
  const lease = await locks.acquire('first', { ttl: 50, autoExtend: false })
  const other = await locks.acquire('second')
  const waiting = new AbortController()
  const waiter = locks.acquire('second', { signal: waiting.signal })
  const followed = new Promise((resolve, reject) => {
    lease.signal.addEventListener('abort', () => {
      waiting.abort(lease.signal.reason)
      locks.acquire('third').then(resolve, reject)
    })
  })
  const timer = setTimeout(() => lease, 60_000) // and so it is not collected
  await assert.rejects(waiter, LockLostError)
  await (await followed).release()
  await other.release()
  clearTimeout(timer)
})

test('a context goes on after an await', async () => {
  const { AsyncLocalStorage } = await import('node:async_hooks')
  const storage = new AsyncLocalStorage()
  const locks = connect('memory:')
  const lease = await locks.acquire('r')
  await Promise.all([
    storage.run('mine', async () => {
      const next = await locks.acquire('r')
      assert.equal(storage.getStore(), 'mine')
      await next.release()
      assert.equal(storage.getStore(), 'mine')
    }),
    sleep(20).then(() => lease.release()),
  ])
})

test('connections that have ended leave no descriptor', async () => {
  const port = await closedPort()
  const server = spawn('redis-server', ['--port', port, '--bind', '127.0.0.1', '--save', ''], { stdio: 'ignore' })
  try {
    const locks = connect(`redis://127.0.0.1:${port}`)
    const pair = async () => (await locks.acquire(unique('ended'), { wait: 20_000 })).release()
    await withRedis(`redis://127.0.0.1:${port}`, async (redis) => {
      await pair()
      await redis.ping()
      const before = openSockets()
      for (let round = 0; round < 20; round++) {
        assert.notEqual(await redis.client('KILL', 'TYPE', 'normal', 'SKIPME', 'yes'), 0)
        await pair()
      }
      // One that has ended is readable for ever: the loop must not see it any more.
      await eventually('the sockets are closed', () => openSockets() <= before)
    })
    await locks.close()
  } finally {
    server.kill()
    await once(server, 'exit')
  }
})
