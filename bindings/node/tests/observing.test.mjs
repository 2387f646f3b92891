// Listing, breaking, metrics and events.

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { connect, InvalidArgumentError, UnsupportedError } from 'polylock'
import { collect } from 'polylock/prometheus'
import { Registry } from 'prom-client'

import { backends, eventually, runNode, shared, unique } from './support.mjs'

const total = (locks, name, labels = {}) =>
  locks
    .metrics()
    .filter((metric) => metric.name === name)
    .flatMap((metric) => metric.points)
    .filter((point) => Object.entries(labels).every(([label, value]) => point.labels[label] === value))
    .reduce((sum, point) => sum + (point.value ?? point.histogram.count), 0)

for (const { name, url } of backends) {
  test(`lists and breaks on ${name}`, async () => {
    const locks = connect(shared(url))
    const resource = unique('seen')
    if (!locks.capabilities.listing) {
      await assert.rejects(locks.list(), UnsupportedError)
      return
    }
    const lease = await locks.acquire(resource, { label: 'here' })
    const [holder, ...more] = await locks.list(`${resource}*`, 5)
    assert.deepEqual(more, [])
    assert.deepEqual([holder.resource, holder.mode, holder.label], [resource, 'exclusive', 'here'])
    assert.deepEqual([holder.owner, holder.fencingToken], [lease.ownerToken, lease.fencingToken])
    assert.deepEqual(await locks.list('no such name'), [])
    if (!locks.capabilities.breaking) {
      await assert.rejects(locks.break(resource, 1n), UnsupportedError)
      return
    }
    assert.equal(await locks.break(resource, lease.fencingToken - 1n), false)
    assert.equal(await locks.break(resource, { owner: '0'.repeat(40) }), false)
    assert.equal(lease.isHeld, true)
    assert.equal(await locks.break(resource, lease.fencingToken), true)
    await eventually('the signal of loss', () => lease.signal.aborted)
    assert.equal(lease.loss, 'taken')
    const other = await locks.acquire(resource)
    assert.equal(await locks.break(resource, { owner: other.ownerToken }), true)
    assert.equal(await locks.inspect(resource), null)
    await locks.close()
  })

  test(`counts and tells on ${name}`, async () => {
    const locks = connect(shared(url))
    const resource = unique('told')
    const events = []
    locks.on('event', (event) => events.push(event))
    const lost = []
    locks.on('lost', (event) => lost.push(event))
    const lease = await locks.acquire(resource)
    assert.equal(total(locks, 'polylock.held'), 1)
    assert.equal(await locks.tryAcquire(resource), null)
    await lease.release()
    assert.equal(total(locks, 'polylock.acquire.duration', { outcome: 'acquired' }), 1)
    assert.equal(total(locks, 'polylock.acquire.duration', { outcome: 'contended' }), 1)
    assert.equal(total(locks, 'polylock.held'), 0)
    await eventually('the first events', () => events.length >= 3)
    assert.deepEqual(
      events.map(({ kind }) => kind),
      ['acquired', 'contended', 'released'],
    )
    assert.deepEqual([events[0].resources, events[0].fencingToken], [[resource], lease.fencingToken])
    const short = await locks.acquire(resource, { ttl: 400, autoExtend: false, wait: 20_000 })
    await eventually('the loss', () => lost.length === 1)
    const [event] = lost
    assert.deepEqual([event.kind, event.reason, event.fencingToken], ['lost', 'expired', short.fencingToken])
    assert.match(locks.metricsText(), /polylock_lost_total\{system="[a-z.]+",reason="expired"\} 1\n/)
    await locks.close()
  })
}

test('refuses what it cannot mean', async () => {
  const locks = connect('memory:')
  for (const [pattern, limit, argument] of [
    ['', 1, 'pattern'],
    ['*', 0, 'limit'],
    ['*', 1.5, 'limit'],
    ['*', NaN, 'limit'],
  ]) {
    await assert.rejects(locks.list(pattern, limit), (error) => {
      return error instanceof InvalidArgumentError && error.argument === argument
    })
  }
  for (const seen of [0n, -1n, 2n ** 70n]) {
    await assert.rejects(locks.break('r', seen), { argument: 'seen', message: /seen must/ })
  }
  await assert.rejects(locks.break('r', { owner: '' }), { argument: 'owner' })
  for (const seen of [undefined, null, 5, 'x', {}]) await assert.rejects(locks.break('r', seen), TypeError)
  await assert.rejects(locks.list(5), TypeError)
})

test('a listener that fails is told again, and the last one ends the subscription', async () => {
  const { status, output, errors } = await runNode(`
    import { connect } from 'polylock'
    const locks = connect('memory:')
    const alive = setInterval(() => {}, 1000)
    const thrown = new Promise((resolve) => process.once('uncaughtException', resolve))
    const heard = []
    locks.once('acquired', () => { throw new Error('oops') })
    locks.on('event', ({ kind }) => heard.push(kind))
    const lease = await locks.acquire('r')
    console.log((await thrown).message)
    await lease.release()
    while (heard.length < 2) await new Promise((resolve) => setTimeout(resolve, 5))
    console.log(heard.join())
    clearInterval(alive)
    locks.on('lost', () => {})
    // A subscription keeps no process alive.
  `)
  assert.equal(errors, '')
  assert.deepEqual([status, output], [0, 'oops\nacquired,released\n'])
})

test('prom-client reads it', async () => {
  const [mine, theirs] = [connect('memory:'), connect('memory:')]
  await mine.using('r', () => undefined)
  const registry = new Registry()
  const remove = collect(registry, { mine, theirs })
  const text = await registry.metrics()
  const counted = 'polylock_acquire_duration_seconds_count{outcome="acquired",system="memory",manager='
  assert.ok(text.includes(`${counted}"mine"} 1\n`) && text.includes(`${counted}"theirs"} 0\n`), text)
  remove()
  assert.equal((await registry.metrics()).trim(), '')
  // The engine's own text has the same samples.
  collect(registry, mine)
  const samples = (all) =>
    all
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('#'))
      .map((line) => line.replace(/\{(.*)\}/, (_, labels) => `{${labels.split(',').sort().join()}}`))
      .sort()
  assert.deepEqual(samples(await registry.metrics()), samples(mine.metricsText()))
})
