// The edges of a process: loading, exiting, worker threads, garbage collection.

import assert from 'node:assert/strict'
import { test } from 'node:test'

import { connect } from 'polylock'

import { backends, eventually, redisUrl, runNode, shared, times, unique, withRedis } from './support.mjs'

/** The threads of the process that evaluates this. */
const threads = `readdirSync('/proc/self/task').length`

/** The loop alone watches the engine. */
const alone = process.env.POLYLOCK_WITHOUT_LIBUV === undefined

test(
  'importing starts no thread, and neither does connecting',
  { skip: process.platform !== 'linux' || !alone },
  async () => {
    const source = `
    import { readdirSync } from 'node:fs'
    import { stat } from 'node:fs/promises'
    // Node starts the threads of its own pool when it loads a module: have them all now.
    await Promise.all(Array.from({ length: 8 }, () => stat('/')))
    const before = ${threads}
    const { connect } = await import('polylock')
    const loaded = ${threads}
    const locks = connect('memory:')
    const connected = ${threads}
    const lease = await locks.acquire('r')
    console.log(JSON.stringify({ before, loaded, connected, used: ${threads} }))`
    const { status, output, errors } = await runNode(source)
    assert.equal(status, 0, errors)
    const { before, loaded, connected, used } = JSON.parse(output)
    assert.equal(loaded, before)
    assert.equal(connected, before)
    assert.ok(used > before, 'the engine would be counted')
  },
)

test('require starts no thread', { skip: process.platform !== 'linux' }, async () => {
  const source = `
    const { readdirSync } = require('node:fs')
    const before = readdirSync('/proc/self/task').length
    require('polylock')
    console.log(readdirSync('/proc/self/task').length - before)`
  const { output, errors } = await runNode(source, { type: 'commonjs' })
  assert.equal(output.trim(), '0', errors)
})

test('require and import give the same classes', async () => {
  const source = `
    import * as imported from 'polylock'
    import { createRequire } from 'node:module'
    const required = createRequire(import.meta.url)('polylock')
    for (const [name, value] of Object.entries(required)) if (imported[name] !== value) throw new Error(name)
    console.log(Object.keys(required).length, Object.keys(imported).length)`
  const { status, output, errors } = await runNode(source)
  assert.equal(status, 0, errors)
  const [required, imported] = output.trim().split(' ').map(Number)
  assert.equal(required, imported)
  assert.ok(required >= 12)
})

/** How a process may end, and whether its end may wait for something. */
const ends = {
  'an idle manager': { does: `await (await locks.acquire(resource)).release()` },
  'a manager that was never used': { does: `` },
  'a held lease': { does: `globalThis.lease = await locks.acquire(resource)` },
  'a held lease without renewal': { does: `globalThis.lease = await locks.acquire(resource, { autoExtend: false })` },
  'a held lease and process.exit': { does: `globalThis.lease = await locks.acquire(resource); process.exit(0)` },
  'a held lease and an error': {
    does: `globalThis.lease = await locks.acquire(resource); setImmediate(() => { throw new Error('end') })`,
    status: 1,
  },
  'a listener of exit that releases and closes': {
    does: `const lease = await locks.acquire(resource)
           process.on('exit', () => { lease.release(); lease.extend(); locks.acquire(resource); locks.close() })`,
  },
  'a pending acquire and process.exit': {
    does: `globalThis.lease = await locks.acquire(resource)
           connect(url).acquire(resource); setTimeout(() => process.exit(0), 50)`,
  },
  'a release on its way': { does: `;(await locks.acquire(resource)).release()` },
  'an acquire on its way and process.exit': { does: `locks.acquire(resource); process.exit(0)` },
  'a worker that holds': {
    does: `const { Worker } = await import('node:worker_threads')
           const work = "import('polylock').then(async ({ connect }) => {" +
             "const { url, resource } = require('node:worker_threads').workerData;" +
             "globalThis.lease = await connect(url).acquire(resource); })"
           new Worker(work, { eval: true, execArgv: [], workerData: { url, resource } })`,
  },
}

/** How often each ending is played. */
const RUNS = times('RUNS', 1)

/** Has a process end as `does` says, which must not take long, and what it held must be free. */
async function endOnce(url, does, expected) {
  const address = shared(url)
  const resource = unique('exit')
  const source = `
    import { connect } from 'polylock'
    const [url, resource] = process.argv.slice(1)
    const locks = connect(url)
    ${does}
    console.log('ran')`
  const { status, errors, took } = await runNode(source, { args: [address, resource] })
  assert.equal(status, expected, errors)
  assert.ok(took < 20_000, `${took} ms`)
  if (url === 'memory:') return
  // Released by the end of the process, long before its ttl of 30 s.
  const locks = connect(address)
  const lease = await locks.acquire(resource, { wait: 5_000 })
  await lease.release()
  await locks.close()
}

for (const { name, url } of backends) {
  for (const [how, { does, status: expected = 0 }] of Object.entries(ends)) {
    test(`a process ends with ${how} on ${name}`, { timeout: RUNS * 60_000 }, async () => {
      for (let run = 0; run < RUNS; run++) await endOnce(url, does, expected)
    })
  }

  test(`a pending acquire keeps a process alive on ${name}`, async () => {
    const source = `
      import { connect } from 'polylock'
      const [url, resource] = process.argv.slice(1)
      const [locks, others] = [connect(url), connect(url)]
      await locks.acquire(resource, { ttl: 300, autoExtend: false })
      const lease = await others.acquire(resource)
      console.log('won', lease.isHeld)`
    const { status, output, errors } = await runNode(source, { args: [shared(url), unique('alive')] })
    assert.equal(status, 0, errors)
    assert.equal(output.trim(), 'won true')
  })

  test(`terminating a worker releases its leases and fails its waiters on ${name}`, async () => {
    const source = `
      import { once } from 'node:events'
      import { Worker } from 'node:worker_threads'
      import { connect } from 'polylock'
      const [url, resource] = process.argv.slice(1)
      const work = \`
        const { parentPort, workerData: { url, resource } } = require('node:worker_threads')
        const { connect } = require('polylock')
        const locks = connect(url)
        locks.acquire(resource, { ttl: 3600000 }).then((lease) => {
          globalThis.lease = lease
          locks.acquire(resource)
          parentPort.postMessage('holds')
          setInterval(() => {}, 1000)
        })\`
      const locks = connect(url)
      for (let round = 0; round < 5; round++) {
        const worker = new Worker(work, { eval: true, execArgv: [], workerData: { url, resource } })
        await once(worker, 'message')
        if ((await locks.tryAcquire(resource)) !== null) throw new Error('not held')
        await worker.terminate()
        await (await locks.acquire(resource, { wait: 20000 })).release()
      }
      console.log('five rounds')`
    const { status, output, errors } = await runNode(source, { args: [shared(url), unique('worker')] })
    assert.equal(status, 0, errors)
    assert.equal(output.trim(), 'five rounds')
  })

  test(`a lease that is garbage-collected while it is held is released with a warning on ${name}`, async () => {
    const source = `
      import { setTimeout as sleep } from 'node:timers/promises'
      import { connect } from 'polylock'
      const [url, resource] = process.argv.slice(1)
      const locks = connect(url)
      const warnings = []
      process.on('warning', (warning) => warnings.push(warning))
      const drop = async () => { await locks.acquire(resource, { ttl: 3600000 }) }
      const keep = async () => (await locks.acquire(resource + '-kept')).signal
      await drop()
      const signal = await keep()
      // (Before Node 20.3 there is none.)
      const either = async () => AbortSignal.any?.([(await locks.acquire(resource + '-any')).signal])
      const any = await either()
      // From Node 24 on its sources know it only when somebody listens.
      if (parseInt(process.versions.node) >= 24) any.addEventListener('abort', () => {})
      for (let tries = 0; warnings.length === 0 && tries < 500; tries++) { gc(); await sleep(5) }
      await (await locks.acquire(resource, { wait: 10000 })).release()
      for (let tries = 0; tries < 5; tries++) { gc(); await sleep(5) }
      if (signal.aborted || (await locks.tryAcquire(resource + '-kept')) !== null) throw new Error('lost with its signal in use')
      if (any && (any.aborted || (await locks.tryAcquire(resource + '-any')) !== null)) throw new Error('lost with one of any in use')
      console.log(warnings.length, warnings[0].code, warnings[0].message.includes(JSON.stringify(resource)))`
    const run = { args: [shared(url), unique('gc')], flags: ['--expose-gc'] }
    const { status, output, errors } = await runNode(source, run)
    assert.equal(status, 0, errors)
    assert.equal(output.trim(), '1 POLYLOCK_LEASE_COLLECTED true')
  })
}

test('the package may be loaded anew over one addon, as Jest does for each file', async () => {
  const source = `
    const load = () => {
      for (const file of Object.keys(require.cache)) if (file.endsWith('.js')) delete require.cache[file]
      return require('polylock')
    }
    process.on('warning', (warning) => console.log(warning))
    const main = async () => {
      const copies = Array.from({ length: 12 }, load)
      if (new Set(copies.map(({ connect }) => connect)).size !== 12) throw new Error('one copy')
      const managers = copies.map(({ connect }) => connect('memory:meet'))
      const heard = []
      managers[1].on('lost', ({ kind }) => heard.push(kind))
      // Through each, while the one before it holds; in the end through the first again.
      let holder = await managers[11].acquire('turn')
      for (const locks of managers) {
        const next = locks.acquire('turn')
        if ((await holder.release()) !== 'released') throw new Error('not held')
        holder = await next
      }
      const alive = setInterval(() => {}, 1000)
      const lost = await managers[1].acquire('lost', { maxHold: 1, ttl: 20 })
      await new Promise((told) => lost.signal.addEventListener('abort', told))
      if (!(lost.signal.reason instanceof copies[1].LockLostError)) throw lost.signal.reason
      while (heard.length === 0) await new Promise(setImmediate)
      clearInterval(alive)
      console.log(heard.join())
    }
    main()`
  const { status, output, errors } = await runNode(source, { type: 'commonjs' })
  assert.equal(status, 0, errors)
  assert.equal(output.trim(), 'lost', errors)
})

// (Before Node 20.3 there is none.)
test('a time-out in AbortSignal.any ends a wait that nobody else knows of', { skip: !AbortSignal.any }, async () => {
  const source = `
    import { setTimeout as sleep } from 'node:timers/promises'
    import { connect } from 'polylock'
    const locks = connect('memory:')
    const lease = await locks.acquire('r')
    const signal = () => AbortSignal.any([AbortSignal.timeout(300), new AbortController().signal])
    const waiting = locks.acquire('r', { signal: signal() }).catch(({ name }) => console.log(name))
    for (let round = 0; round < 10; round++) { gc(); await sleep(1) }
    await waiting
    await lease.release()`
  const { status, output, errors } = await runNode(source, { flags: ['--expose-gc'] })
  assert.equal(status, 0, errors)
  assert.equal(output.trim(), 'TimeoutError')
})

test('a worker alone may use it, and go', async () => {
  const source = `
    import { once } from 'node:events'
    import { Worker } from 'node:worker_threads'
    const work = "const { connect } = require('polylock'); connect('memory:').acquire('r').then((l) => { globalThis.l = l; process.exit() })"
    for (let round = 0; round < 10; round++) await once(new Worker(work, { eval: true, execArgv: [] }), 'exit')
    // Those who loaded it first are gone.
    const { connect } = await import('polylock')
    await (await connect('memory:').acquire('r')).release()
    console.log('ten')`
  const { status, output, errors } = await runNode(source)
  assert.equal(status, 0, errors)
  assert.equal(output.trim(), 'ten')
})

test('a killed process leaves its lock until the ttl is over', { skip: redisUrl === undefined }, async () => {
  const resource = unique('killed')
  const source = `
    import { connect } from 'polylock'
    const [url, resource] = process.argv.slice(1)
    await connect(url).acquire(resource, { ttl: 1000 })
    process.kill(process.pid, 'SIGKILL')`
  const { signal } = await runNode(source, { args: [redisUrl, resource] })
  assert.equal(signal, 'SIGKILL')
  await withRedis(redisUrl, async (client) => {
    await eventually('it expired', async () => (await client.exists(resource)) === 0, 10_000)
  })
})
