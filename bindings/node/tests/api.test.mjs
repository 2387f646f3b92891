// The public API beyond the scenarios: classes of errors, `using`, disposal, wrong arguments, servers that do not answer.

import assert from 'node:assert/strict'
import { AsyncLocalStorage } from 'node:async_hooks'
import { createServer } from 'node:net'
import { EventEmitter, getEventListeners, once } from 'node:events'
import { test } from 'node:test'
import { inspect } from 'node:util'
import { runInNewContext } from 'node:vm'

import {
  AcquireTimeoutError,
  AuthError,
  ClosedError,
  connect,
  InvalidArgumentError,
  LockLostError,
  PolylockError,
  UnavailableError,
  UnsupportedError,
} from 'polylock'

import { aborted, backends, closedPort, redisUrl, shared, unique, withRedis } from './support.mjs'

for (const { name, url } of backends) {
  test(`a lease tells of itself on ${name}`, async () => {
    const locks = connect(shared(url))
    const resource = unique('facts')
    const before = Date.now()
    const lease = await locks.acquire(resource, { ttl: 10_000, label: 'me' })
    assert.equal(lease.resource, resource)
    assert.match(lease.ownerToken, /^[0-9a-f]{40}$/)
    assert.equal(typeof lease.fencingToken, 'bigint')
    assert.ok(lease.fencingToken > 0n && lease.fencingToken < 2n ** 53n)
    // The drift allowance (1 % + 2 ms) is off, and what the round trip took.
    assert.ok(lease.deadline >= before + 10_000 - 103 && lease.deadline <= Date.now() + 10_000 - 102 + 1)
    assert.ok(lease.remaining > 0 && lease.remaining <= 9_898)
    assert.equal(lease.isHeld, true)
    assert.equal(lease.loss, null)
    assert.equal(lease.signal.aborted, false)
    const holder = await locks.inspect(resource)
    assert.equal(holder.owner, lease.ownerToken)
    assert.ok(holder.fencingToken === undefined || holder.fencingToken === lease.fencingToken)
    assert.equal(await lease.release(), 'released')
    assert.equal(await lease.release(), 'not_held')
    assert.equal(lease.isHeld, false)
    assert.equal(lease.remaining, 0)
    assert.equal(lease.loss, null)
    assert.ok(lease.deadline <= Date.now())
    assert.equal(lease.signal.aborted, false)
    await assert.rejects(lease.extend(), LockLostError)
    assert.equal(await locks.inspect(resource), null)
    await locks.close()
  })

  test(`using releases on ${name}, whatever the body does`, async () => {
    const locks = connect(shared(url))
    const resource = unique('using')
    assert.equal(await locks.using(resource, (lease) => `sync ${lease.resource}`), `sync ${resource}`)
    assert.equal(await locks.using(resource, { ttl: 5_000 }, async (lease) => lease.isHeld), true)
    await assert.rejects(
      locks.using(resource, async () => {
        throw new RangeError('from the body')
      }),
      new RangeError('from the body'),
    )
    // A body that released for itself did nothing wrong.
    assert.equal(await locks.using(resource, (lease) => lease.release()), 'released')
    assert.equal(await locks.inspect(resource), null)
    await locks.close()
  })

  test(`using tells that the lease was lost on ${name}, unless the body failed`, async () => {
    const locks = connect(shared(url))
    const options = { ttl: 50, autoExtend: false }
    const untilLost = (lease) => keepAlive(aborted(lease.signal))
    const error = await locks.using(unique('lost'), options, untilLost).catch((error) => error)
    assert.ok(error instanceof LockLostError)
    assert.equal(error.reason, 'expired')
    const body = locks.using(unique('lost'), options, async (lease) => {
      await untilLost(lease)
      assert.equal(lease.signal.reason instanceof LockLostError, true)
      throw new RangeError('from the body')
    })
    await assert.rejects(body, new RangeError('from the body'))
    await locks.close()
  })

  test(`an extension that comes too late says why the lease was lost on ${name}`, async () => {
    const locks = connect(shared(url))
    const lease = await locks.acquire(unique('late'), { ttl: 50, autoExtend: false })
    await keepAlive(aborted(lease.signal))
    await assert.rejects(lease.extend(), { name: 'LockLostError', reason: 'expired' })
    assert.equal(await lease.release(), 'not_held')
    await assert.rejects(lease.extend(), { name: 'LockLostError', reason: 'expired' })
    const released = await locks.acquire(unique('late'))
    await released.release()
    await assert.rejects(released.extend(), { name: 'LockLostError', reason: undefined })
    await locks.close()
  })

  test(`a body that waits for its signal alone is not collected on ${name}`, { timeout: 20_000 }, async () => {
    const locks = connect(shared(url))
    const collecting = setInterval(() => globalThis.gc(), 5)
    const options = { ttl: 300, autoExtend: false }
    const error = await locks.using(unique('lost'), options, (lease) => aborted(lease.signal)).catch((e) => e)
    clearInterval(collecting)
    assert.ok(error instanceof LockLostError)
    await locks.close()
  })

  test(`await using disposes on ${name}`, async () => {
    const locks = connect(shared(url))
    const resource = unique('dispose')
    const lease = await locks.acquire(resource)
    await lease[Symbol.asyncDispose]()
    await lease[Symbol.asyncDispose]()
    assert.equal(await locks.inspect(resource), null)
    await locks[Symbol.asyncDispose]()
    await assert.rejects(locks.acquire(resource), ClosedError)
  })

  test(`closing on ${name} fails waiters and releases leases`, async () => {
    const address = shared(url)
    const [locks, others] = [connect(address), connect(address)]
    const resource = unique('close')
    const lease = await locks.acquire(resource)
    const waiter = locks.acquire(resource)
    const closed = assert.rejects(waiter, (error) => error instanceof ClosedError && error.code === 'Closed')
    await locks.close()
    await closed
    await locks.close()
    assert.equal(lease.isHeld, false)
    assert.equal(await lease.release(), 'not_held')
    assert.throws(() => locks.waiting(resource), ClosedError)
    const next = await others.acquire(resource, { wait: 5_000 })
    await next.release()
    await others.close()
  })

  test(`200 waiters each get their turn on ${name}`, async () => {
    const locks = connect(shared(url))
    const resource = unique('turns')
    let inside = 0
    let last = 0n
    const turns = Array.from({ length: 200 }, () =>
      locks.using(resource, async (lease) => {
        assert.equal(++inside, 1)
        assert.ok(lease.fencingToken > last)
        last = lease.fencingToken
        await null
        inside--
      }),
    )
    await Promise.all(turns)
    await locks.close()
  })
}

test('errors have a stable code and number', async () => {
  const locks = connect('memory:')
  const lease = await locks.acquire('r')
  const error = await locks.acquire('r', { wait: 0 }).catch((error) => error)
  assert.ok(error instanceof AcquireTimeoutError && error instanceof PolylockError && error instanceof Error)
  const { code, number, resource, argument, causes, retryable, name } = error
  assert.deepEqual(
    { code, number, resource, argument, causes, retryable, name },
    {
      code: 'Timeout',
      number: 1,
      resource: 'r',
      argument: undefined,
      causes: [],
      retryable: true,
      name: 'AcquireTimeoutError',
    },
  )
  assert.match(error.message, /"r".*held by somebody else/)
  await lease.release()
})

test('a wrong type is a TypeError that names the argument', async () => {
  const locks = connect('memory:')
  const rejects = (promise, argument) =>
    assert.rejects(promise, (error) => error.constructor === TypeError && error.message.startsWith(`${argument} must`))
  for (const resource of [undefined, null, 5, {}, ['r'], Symbol('r'), 5n]) {
    await rejects(locks.acquire(resource), 'resource')
    await rejects(locks.tryAcquire(resource), 'resource')
    await rejects(locks.inspect(resource), 'resource')
    assert.throws(() => locks.waiting(resource), TypeError)
  }
  await rejects(locks.acquire('r', 5), 'options')
  await rejects(locks.acquire('r', null), 'options')
  const noOptions = [
    [],
    [5_000],
    new Date(),
    new Map([['wait', 0]]),
    new Set(),
    Promise.resolve({}),
    /r/,
    new Uint8Array(1),
  ]
  for (const options of noOptions) {
    await rejects(locks.acquire('r', options), 'options')
    await rejects(locks.tryAcquire('r', options), 'options')
    await rejects(
      locks.using('r', options, () => {}),
      'options',
    )
    assert.throws(() => connect('memory:', options), /^TypeError: options must be an object of options, not /)
  }
  for (const argument of ['ttl', 'wait', 'maxHold']) await rejects(locks.acquire('r', { [argument]: '5' }), argument)
  await rejects(locks.acquire('r', { autoExtend: 1 }), 'autoExtend')
  await rejects(locks.acquire('r', { label: 5 }), 'label')
  await rejects(locks.acquire('r', { signal: {} }), 'signal')
  for (const seen of [undefined, null, 5, '5']) await rejects(locks.break('r', seen), 'seen')
  await rejects(locks.break('r', {}), 'owner')
  for (const permits of [undefined, null, '5', 5n]) {
    assert.throws(() => locks.semaphore('r', permits), /^TypeError: permits must be a number/)
  }
  await rejects(locks.using('r', {}), 'fn')
  await rejects(locks.using('r', {}, 5), 'fn')
  const lease = await locks.acquire('r')
  await rejects(lease.extend('5'), 'ttl')
  await lease.release()
  // A hole is no name.
  for (const resources of ['r', ['r', 5], new Array(1)]) await assert.rejects(locks.acquireAll(resources), TypeError)
  for (const url of [undefined, null, 5, {}, [5], new Array(1)]) assert.throws(() => connect(url), TypeError)
  assert.throws(() => connect('memory:', { prefix: 5 }), /^TypeError: prefix must be a string, not number$/)
  assert.throws(() => connect('memory:', { nodeTimeout: '5' }), TypeError)
})

test('options are an object of any class of the caller, of any realm, or of no class', async () => {
  class Settings {
    wait = 0
    get ttl() {
      return 60_000
    }
  }
  const locks = connect('memory:')
  const all = [new Settings(), Object.assign(Object.create(null), { wait: 0 }), runInNewContext('({ wait: 0 })')]
  for (const options of all) {
    const lease = await locks.acquire('r', options)
    if (options instanceof Settings) assert.ok(lease.remaining > 30_000)
    await assert.rejects(locks.acquire('r', options), AcquireTimeoutError)
    await lease.release()
  }
})

test('a value without meaning is an InvalidArgumentError that names the argument', async () => {
  const invalid = (argument) => (error) => error instanceof InvalidArgumentError && error.argument === argument
  for (const url of ['', 'nonsense', 'nonsense://x', 'redis://[', [], ['memory:', 'memory:']]) {
    assert.throws(() => connect(url), invalid('url'), String(url))
  }
  assert.throws(() => connect('memory:', { driftFactor: 2 }), invalid('driftFactor'))
  assert.throws(() => connect('memory:', { nodeTimeout: -1 }), invalid('nodeTimeout'))
  const locks = connect('memory:')
  await assert.rejects(locks.acquire('r', { maxHold: NaN }), invalid('maxHold'))

  await assert.rejects(locks.acquire('r\ud800'), invalid('resource'))
  await assert.rejects(locks.acquire('r', { label: '\ud800' }), invalid('label'))
  const saysWhich = (argument, value) => (error) => invalid(argument)(error) && error.message.endsWith(`, not ${value}`)
  for (const permits of [0, -1, 1.5, NaN, 65_536]) {
    assert.throws(() => locks.semaphore('r', permits), saysWhich('permits', permits))
  }
  for (const limit of [-1, 1.5, NaN, 100_001]) {
    await assert.rejects(locks.list('*', limit), saysWhich('limit', limit))
  }
  const lease = await locks.acquire('r')
  for (const ttl of [0, -1, NaN, Infinity, 2 ** 53 + 2]) await assert.rejects(lease.extend(ttl), invalid('ttl'))
  assert.equal(await lease.release(), 'released')
})

test('an unknown option is an InvalidArgumentError that names it and those that there are', async () => {
  const unknown = {
    name: 'InvalidArgumentError',
    argument: 'timeout',
    message: /^timeout is no option here; there are .+/,
  }
  const locks = connect('memory:')
  assert.throws(() => connect('memory:', { timeout: 5 }), unknown)
  await assert.rejects(locks.acquire('r', { timeout: 5 }), unknown)
  await assert.rejects(locks.tryAcquire('r', { timeout: 5 }), unknown)
  await assert.rejects(locks.tryAcquire('r', { wait: 5 }), {
    ...unknown,
    argument: 'wait',
    message: /^wait is no option/,
  })
  await assert.rejects(locks.acquireAll(['r'], { timeout: 5 }), unknown)
  await assert.rejects(locks.shared('r').acquire({ timeout: 5 }), unknown)
  await assert.rejects(
    locks.using('r', { timeout: 5 }, () => null),
    unknown,
  )
  assert.equal(await locks.inspect('r'), null)
})

test('no options are undefined, and no bound is Infinity', async () => {
  const locks = connect('memory:', undefined)
  assert.equal(await locks.using('r', undefined, () => 1), 1)
  assert.equal(await locks.shared('r').using(undefined, () => 2), 2)
  await (await locks.acquire('r', { wait: Infinity, maxHold: Infinity })).release()
})

test('a server that is not there is an UnavailableError within the wait', async () => {
  const locks = connect(`redis://:secret-word@127.0.0.1:${await closedPort()}`)
  for (const wait of [0, 300]) {
    const began = Date.now()
    const error = await locks.acquire('r', { wait }).catch((error) => error)
    assert.ok(error instanceof UnavailableError, inspect(error))
    assert.ok(error.causes.length > 0)
    assert.ok(!inspect(error, { depth: 9 }).includes('secret-word'))
    assert.ok(Date.now() - began < wait + 5_000)
  }
  assert.ok(!inspect(locks, { depth: 9, showHidden: true }).includes('secret-word'))
  await locks.close()
})

test('a server that says nothing is an UnavailableError within the wait', async () => {
  const silent = createServer((socket) => socket.on('error', () => {})).listen(0, '127.0.0.1')
  await once(silent, 'listening')
  const locks = connect(`redis://127.0.0.1:${silent.address().port}`, { nodeTimeout: 100 })
  await assert.rejects(locks.acquire('r', { wait: 300, ttl: 1_000 }), UnavailableError)
  await locks.close()
  silent.close()
})

test('a wrong password is an AuthError', { skip: process.env.POLYLOCK_TEST_REDIS_AUTH === undefined }, async () => {
  const url = new URL(process.env.POLYLOCK_TEST_REDIS_AUTH)
  const right = connect(url.href)
  await (await right.acquire(unique('auth'))).release()
  await right.close()
  url.password = 'wrong-word'
  const locks = connect(url.href)
  const error = await locks.acquire('r').catch((error) => error)
  assert.ok(error instanceof AuthError, inspect(error))
  assert.ok(!inspect(error, { depth: 9 }).includes('wrong-word'))
  await locks.close()
})

test('who listens to the signal of a lease has the context in which it was asked for', async () => {
  const context = new AsyncLocalStorage()
  const locks = connect('memory:')
  const heard = context.run('the request', async () => {
    const lease = await locks.acquire(unique('context'), { ttl: 20, autoExtend: false })
    return new Promise((resolve) => lease.signal.addEventListener('abort', () => resolve(context.getStore())))
  })
  assert.equal(await heard, 'the request')
  await locks.close()
})

test('a lease that is lost says what kept it from being extended', { skip: redisUrl === undefined }, () =>
  withRedis(redisUrl, async (client) => {
    const user = unique('clerk')
    await client.acl('SETUSER', user, 'on', '>secret', '~*', '&*', '+@all')
    const locks = connect(redisUrl.replace('//', `//${user}:secret@`))
    const refused = (error) =>
      error instanceof LockLostError &&
      error.reason === 'expired' &&
      error.causes.some((cause) => cause.includes('NOPERM')) &&
      error.message.includes('NOPERM')
    const alive = setInterval(() => {}, 1000)
    const told = once(locks, 'lost')
    const body = async (lease) => {
      await client.acl('SETUSER', user, '-evalsha')
      await assert.rejects(lease.extend(), AuthError)
      await aborted(lease.signal)
      assert.ok(refused(lease.signal.reason), inspect(lease.signal.reason))
      await assert.rejects(lease.extend(), refused)
    }
    await assert.rejects(locks.using(unique('clerk'), { ttl: 1000 }, body), refused)
    const [{ error }] = await told
    assert.match(error, /NOPERM/)
    clearInterval(alive)
    await client.acl('DELUSER', user)
  }),
)

test('a prefix is part of the key', { skip: redisUrl === undefined }, async () => {
  const locks = connect(redisUrl, { prefix: 'app:' })
  const resource = unique('prefix')
  const lease = await locks.acquire(resource)
  await withRedis(redisUrl, async (client) => {
    assert.equal(await client.get(`app:${resource}`), lease.ownerToken)
  })
  await lease.release()
  await locks.close()
})

test('a signal that is aborted already rejects with its reason', async () => {
  const locks = connect('memory:')
  const reason = new Error('enough')
  await assert.rejects(locks.acquire('r', { signal: AbortSignal.abort(reason) }), reason)
  await assert.rejects(locks.tryAcquire('r', { signal: AbortSignal.abort(reason) }), reason)
  assert.equal(await locks.inspect('r'), null)
})

test('the signal of a polyfill, which knows no reasons, cancels as well', async () => {
  const locks = connect('memory:')
  const holder = await locks.acquire('r')
  const signal = Object.assign(new EventTarget(), { aborted: false })
  const waiting = locks.acquire('r', { signal })
  signal.aborted = true
  signal.dispatchEvent(new Event('abort'))
  await assert.rejects(waiting, { name: 'AbortError' })
  await assert.rejects(locks.acquire('r', { signal }), { name: 'AbortError' })
  await holder.release()
})

test('the signal of a polyfill that is made of an EventEmitter cancels as well', async () => {
  const locks = connect('memory:')
  const holder = await locks.acquire('r')
  const emitter = new EventEmitter()
  const signal = {
    aborted: false,
    addEventListener: emitter.on.bind(emitter),
    removeEventListener: emitter.off.bind(emitter),
  }
  const waiting = locks.acquire('r', { signal })
  emitter.emit('abort')
  await assert.rejects(waiting, { name: 'AbortError' })
  assert.equal(emitter.listenerCount('abort'), 0)
  await holder.release()
})

test('a signal that takes no listener is an error of the acquire, which is cancelled', async () => {
  const locks = connect('memory:')
  const holder = await locks.acquire('r')
  const failure = new Error('no listeners here')
  const addEventListener = () => {
    throw failure
  }
  const signal = { aborted: false, addEventListener, removeEventListener: () => {} }
  await assert.rejects(locks.acquire('r', { signal }), failure)
  assert.equal(locks.waiting('r'), 0)
  await holder.release()
})

test('many may be cancelled by one signal, which then has no listener of theirs', async () => {
  const warnings = []
  const warned = (warning) => warnings.push(warning)
  process.on('warning', warned)
  const locks = connect('memory:')
  const holder = await locks.acquire('r')
  const controller = new AbortController()
  const { signal } = controller
  const waiting = Array.from({ length: 30 }, () => locks.acquire('r', { signal }))
  await (await locks.acquire('other', { signal })).release()
  const reason = new Error('all of you')
  controller.abort(reason)
  for (const waiter of await Promise.allSettled(waiting)) assert.equal(waiter.reason, reason)
  assert.deepEqual(getEventListeners(signal, 'abort'), [])
  assert.equal(locks.waiting('r'), 0)
  await holder.release()
  // Also by one that lives on.
  const { signal: lasting } = new AbortController()
  const turns = Array.from({ length: 30 }, () => locks.using('r', { signal: lasting }, () => null))
  await Promise.all(turns)
  assert.deepEqual(getEventListeners(lasting, 'abort'), [])
  assert.deepEqual(warnings, [])
  process.off('warning', warned)
})

/** Keeps the process alive while `promise` is pending: a held lease alone does not. */
async function keepAlive(promise) {
  const timer = setInterval(() => {}, 1_000)
  try {
    return await promise
  } finally {
    clearInterval(timer)
  }
}

test('a copy of a lease shows what it is of', async () => {
  const locks = connect('memory:')
  const seen = await locks.using('copied', (lease) => [
    JSON.parse(JSON.stringify(lease)),
    structuredClone(lease),
    lease,
  ])
  const { resource, ownerToken } = seen.pop()
  for (const copy of seen) assert.deepEqual(copy, { resource, ownerToken })
  await locks.close()
})

for (const { name, url } of backends) {
  test(`several resources are taken all or none on ${name}`, async (context) => {
    const locks = connect(shared(url))
    if (!locks.capabilities.several) return context.skip('not there')
    const [first, second, third] = [unique('several-1'), unique('several-2'), unique('several-3')]
    const both = await locks.acquireAll([second, first])
    assert.deepEqual(both.resources, [first, second].sort())
    assert.equal(await locks.tryAcquire(first), null)
    await assert.rejects(locks.acquireAll([third, second], { wait: 0 }), AcquireTimeoutError)
    assert.equal(await locks.tryAcquireAll([third, second]), null)
    assert.equal(await locks.inspect(third), null)
    assert.equal(await both.release(), 'released')
    const lease = await locks.tryAcquireAll([first, second])
    assert.deepEqual(lease.resources, [first, second])
    await lease.release()
    await assert.rejects(lease.extend(), { resource: `${first}, ${second}` })
    const held = await locks.usingAll([first, second], async ({ resources }) => [
      resources,
      await locks.inspect(second),
    ])
    assert.deepEqual(held[0], [first, second])
    assert.equal(typeof held[1].owner, 'string')
    assert.equal(await locks.usingAll([first], { ttl: 5_000, wait: 0 }, ({ isHeld }) => isHeld), true)
    assert.equal(await locks.inspect(first), null)
    for (const wrong of [[], ['a', 'a'], ['']]) {
      await assert.rejects(locks.acquireAll(wrong), { argument: 'resources', message: /resources (must|names)/ })
    }
    await assert.rejects(locks.acquireAll('r'), TypeError)
    // Everybody in another order, and no deadlock.
    const orders = Array.from({ length: 30 }, (_, index) => [first, second, third].sort(() => (index % 2) - 0.5))
    await Promise.all(orders.map(async (order) => (await locks.acquireAll(order)).release()))
    await locks.close()
    // Whatever it is that goes wrong: the error says with what.
    const named = (resource) => (error) => error.resource === resource && error.message.startsWith(`"${resource}": `)
    await assert.rejects(locks.acquireAll([third, first]), named(`${first}, ${third}`))
    await assert.rejects(locks.acquire(first), named(first))
    await assert.rejects(locks.acquireAll([third, first], { ttl: 1 }), named(`${first}, ${third}`))
  })

  test(`waiters are served in order on ${name}`, async () => {
    const [locks, other] = [connect(shared(url)), connect(shared(url))]
    const resource = unique('fair')
    if (locks.capabilities.fair) {
      const holder = await locks.acquire(resource, { fair: true })
      const waiting = other.acquire(resource, { fair: true })
      assert.equal(await locks.tryAcquire(resource, { fair: true }), null)
      await holder.release()
      assert.equal(await (await waiting).release(), 'released')
      await assert.rejects(locks.acquire(resource, { fair: 1 }), TypeError)
    } else {
      await assert.rejects(locks.acquire(resource, { fair: true }), UnsupportedError)
    }
    await Promise.all([locks.close(), other.close()])
  })

  test(`readers share on ${name}`, async (context) => {
    const locks = connect(shared(url))
    if (!locks.capabilities.shared) return context.skip('not there')
    const resource = unique('shared')
    const readers = locks.shared(resource)
    const [one, two] = [await readers.acquire({ wait: 0 }), await readers.acquire({ wait: 0 })]
    assert.equal(await locks.tryAcquire(resource), null)
    assert.equal(await one.release(), 'released')
    assert.equal(await locks.tryAcquire(resource), null)
    assert.equal(await two.release(), 'released')
    const writer = await locks.acquire(resource, { wait: 5_000 })
    assert.equal(await readers.tryAcquire(), null)
    await writer.release()
    assert.equal(await readers.using((lease) => lease.resource), resource)
    await locks.close()
  })

  test(`a semaphore has so many permits on ${name}`, async (context) => {
    const locks = connect(shared(url))
    if (!locks.capabilities.semaphore) return context.skip('not there')
    const permits = locks.semaphore(unique('semaphore'), 3)
    let inside = 0
    let most = 0
    const turns = Array.from({ length: 12 }, () =>
      permits.using({ wait: 30_000 }, async () => {
        most = Math.max(most, ++inside)
        await new Promise((resolve) => setTimeout(resolve, 10))
        inside--
      }),
    )
    await Promise.all(turns)
    assert.equal(most, 3)
    await locks.close()
  })
}
