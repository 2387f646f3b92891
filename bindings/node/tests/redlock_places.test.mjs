// polylock/redlock with clients of a cluster and of sentinels, real ones.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import { Cluster, Redis } from 'ioredis'
import Redlock from 'polylock/redlock'

import { closedPort, eventually, redisUrl, unique } from './support.mjs'

const skip = redisUrl === undefined

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

test('a client of a cluster', { skip }, () =>
  withServer(['cluster-enabled yes', 'requirepass sesame'], async (port, client) => {
    await client.cluster('ADDSLOTSRANGE', 0, 16_383)
    await eventually('the cluster works', async () => /cluster_state:ok/.test(await client.cluster('INFO')))
    for (const nodes of [[{ host: '127.0.0.1', port }], [`redis://127.0.0.1:${port}`]]) {
      const cluster = new Cluster(nodes, { redisOptions: { password: 'sesame' }, keyPrefix: 'p:', lazyConnect: true })
      await assertLocks([cluster], client, 'p:')
      cluster.disconnect()
    }
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
