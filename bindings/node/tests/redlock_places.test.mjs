// polylock/redlock with clients of a cluster and of sentinels, real ones.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect as dial, createServer } from 'node:net'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import { Cluster, Redis } from 'ioredis'
import Redlock from 'polylock/redlock'

import { closedPort, eventually, redisUrl, unique } from './support.mjs'

const require = createRequire(import.meta.url)
const skip = redisUrl === undefined
const nodes = (process.env.POLYLOCK_TEST_REDLOCK ?? '').split(',').filter((url) => url !== '')

/** Runs `body` with a redis-server of its own: its port, and a client of it. */
async function withServer(options, body) {
  const directory = await mkdtemp(join(tmpdir(), 'polylock-node-'))
  const port = await closedPort()
  const lines = [`port ${port}`, 'bind 127.0.0.1', `dir ${directory}`, 'save ""', ...options]
  await writeFile(join(directory, 'conf'), lines.join('\n'))
  const sentinel = options.some((line) => line.startsWith('sentinel ')) ? ['--sentinel'] : []
  const server = spawn('redis-server', [join(directory, 'conf'), ...sentinel], { stdio: 'ignore' })
  const [, password] = options.find((line) => line.startsWith('requirepass ')).split(' ')
  const client = new Redis({ port, password, retryStrategy: () => 20, maxRetriesPerRequest: null })
  client.on('error', () => {}) // until it listens
  try {
    await client.ping()
    await body(port, client)
  } finally {
    client.disconnect()
    server.kill('SIGKILL')
    await once(server, 'exit')
    await rm(directory, { recursive: true })
  }
}

/** That it locks by `clients`, under the key that `client` sees there. */
async function assertLocks(clients, client, prefix) {
  const redlock = new Redlock(clients, { retryCount: 20 })
  const key = unique('{r}place')
  const lock = await redlock.acquire([key], 10_000)
  assert.equal(await client.get(prefix + key), lock.value)
  await lock.release()
  assert.equal(await client.get(prefix + key), null)
  await redlock.quit()
}

/** Runs `body` with the port of a way to `port` that takes a moment, but for less than the moment that others are waited for. */
async function withDelay(port, body) {
  const sockets = new Set()
  const listener = createServer((from) => {
    const to = dial(port, '127.0.0.1')
    from.on('data', (data) => setTimeout(() => to.write(data), 10))
    to.pipe(from)
    for (const socket of [from, to]) {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.on('close', () => [from, to].forEach((each) => each.destroy()))
    }
  }).listen(0, '127.0.0.1')
  await once(listener, 'listening')
  try {
    await body(listener.address().port)
  } finally {
    for (const socket of sockets) socket.destroy()
    listener.close()
  }
}

/** That each server that `servers` see has been told of what redlock 4's calls do when they are done, as those who look at once expect. */
async function assertEverywhere(redlock, servers) {
  const rounds = 20
  let behind = 0
  const look = async (holds) => {
    const seen = await Promise.all(servers.map(holds))
    behind += Number(!seen.every(Boolean))
  }
  for (let round = 0; round < rounds; round++) {
    const key = unique('{r}everywhere')
    const lock = await redlock.lock(key, 10_000)
    await look(async (server) => (await server.get(key)) === lock.value)
    const extended = await lock.extend(30_000)
    await look(async (server) => (await server.pttl(key)) > 20_000)
    await servers[0].set(key + 'taken', 'somebody')
    await servers[1].set(key + 'taken', 'somebody')
    await assert.rejects(redlock.lockWithOptions(key + 'taken', 10_000, { retryCount: 0 }))
    await look(async (server) => [null, 'somebody'].includes(await server.get(key + 'taken')))
    await extended.unlock()
    await look(async (server) => (await server.get(key)) === null)
  }
  // Every lock and unlock leaves one of them behind, if it is not waited for: half of the looks. None is waited for longer than a moment:
  // a machine that stands still for longer than that has a look or two find it behind.
  assert.ok(behind < rounds, `${behind} of ${4 * rounds}`)
  await redlock.quit()
}

test('clients of a cluster', { skip }, () =>
  withServer(['cluster-enabled yes', 'requirepass sesame'], async (port, client) => {
    await client.cluster('ADDSLOTSRANGE', 0, 16_383)
    await eventually('the cluster works', async () => /cluster_state:ok/.test(await client.cluster('INFO')))
    for (const seeds of [[{ host: '127.0.0.1', port }], [`redis://127.0.0.1:${port}`]]) {
      const cluster = new Cluster(seeds, { redisOptions: { password: 'sesame' }, keyPrefix: 'p:', lazyConnect: true })
      await assertLocks([cluster], client, 'p:')
      cluster.disconnect()
    }
    const { createCluster } = require('redis5')
    const password = 'sesame'
    for (const settings of [
      { rootNodes: [{ url: `redis://127.0.0.1:${port}` }], defaults: { password } },
      { rootNodes: [{ url: `redis://:sesame@127.0.0.1:${port}` }] },
      { rootNodes: [{ socket: { host: '127.0.0.1', port }, password }] },
    ]) {
      await assertLocks([createCluster(settings)], client, '')
      // One that is in use, and what its methods make of it.
      const cluster = createCluster(settings.defaults ? settings : { ...settings, defaults: { password } })
      await cluster.connect()
      await assertLocks([cluster.withCommandOptions({})], client, '')
      await cluster.close()
    }
    // One that hides what it was made of, as those of node-redis 4 do.
    const hiding = require('redis4').createCluster({
      rootNodes: [{ url: `redis://127.0.0.1:${port}` }],
      defaults: { password },
    })
    const why = /an older createCluster of node-redis shows them only while it is connected/
    assert.throws(() => new Redlock([hiding]), why)
    await hiding.connect()
    await assertLocks([hiding], client, '')
    await hiding.disconnect()
    assert.throws(() => new Redlock([hiding]), why)
    const mapped = require('redis4').createCluster({
      rootNodes: [{ url: `redis://127.0.0.1:${port}` }],
      defaults: { password },
      nodeAddressMap: () => ({ host: 'localhost', port }),
    })
    await mapped.connect()
    assert.throws(() => new Redlock([mapped]), /nodeAddressMap/)
    await mapped.disconnect()
    const others = nodes.slice(0, 2).map((url) => new Redis(url))
    const cluster = new Cluster([{ host: '127.0.0.1', port }], {
      redisOptions: { password: 'sesame' },
      lazyConnect: true,
    })
    try {
      await withDelay(new URL(nodes[1]).port, async (port) => {
        const slow = new Redis({ port, lazyConnect: true })
        await assertEverywhere(new Redlock([cluster, others[0], slow]), [client, ...others])
        slow.disconnect()
      })
    } finally {
      for (const each of [cluster, ...others]) each.disconnect()
    }
  }),
)

test('a pool of node-redis', { skip }, () =>
  withServer(['requirepass sesame'], async (port, client) => {
    const { createClientPool } = require('redis5')
    const pool = createClientPool({ url: `redis://:sesame@127.0.0.1:${port}/0` }, { minimum: 1, maximum: 1 })
    const why = /createClientPool of node-redis shows them only while it has an idle client/
    assert.throws(() => new Redlock([pool]), why)
    await pool.connect()
    try {
      await assertLocks([pool], client, '')
      assert.equal(pool.isOpen, false, 'it was quit')
      await pool.connect()
      // It is in use, and not by us.
      await pool.execute(async () => assert.throws(() => new Redlock([pool]), why))
      await eventually('it is idle', () => pool.idleClients > 0)
      await assertLocks([pool.withCommandOptions({})], client, '')
    } finally {
      pool.destroy()
    }
  }),
)

test('what a server answers is told, and not that it was out of reach', { skip }, () =>
  withServer(['requirepass sesame', 'min-replicas-to-write 1'], async (port, client) => {
    const redlock = new Redlock([client], { retryCount: 0 })
    const told = []
    redlock.on('error', (error) => told.push(error))
    const error = await redlock.acquire([unique('refused')], 10_000).catch((error) => error)
    const [{ votesAgainst }] = await Promise.all(error.attempts)
    assert.match(votesAgainst.get(client).message, /^NOREPLICAS /)
    assert.deepEqual(told, [votesAgainst.get(client)])
    await redlock.quit()
  }),
)

test('a client with sentinels', { skip }, () =>
  withServer(['requirepass sesame'], async (port, client) => {
    const watch = [`sentinel monitor m 127.0.0.1 ${port} 1`, 'sentinel auth-pass m sesame', 'requirepass open']
    await withServer(watch, async (sentinel) => {
      const primary = new Redis({
        sentinels: [{ host: '127.0.0.1', port: sentinel }],
        sentinelPassword: 'open',
        name: 'm',
        password: 'sesame',
        keyPrefix: 'p:',
        lazyConnect: true,
      })
      await assertLocks([primary], client, 'p:')
      primary.disconnect()
    })
  }),
)
