// What the tests share.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'

import { Redis } from 'ioredis'

/** Every backend that the environment has, by a name to show. */
export const backends = (process.env.POLYLOCK_TEST_URLS ?? 'memory:')
  .split(' ')
  .filter((url) => url !== '')
  .map((url) => ({ name: url.includes(',') ? 'Redlock' : url.split(':')[0], url }))

/** One Redis, where there is one. */
export const redisUrl = process.env.POLYLOCK_TEST_REDIS

/** How often something is done: for longer where the environment asks for it, as `make node-long` does. */
export const times = (what, usual) => Number(process.env[`POLYLOCK_TEST_${what}`] ?? usual)

let names = 0

/** A name that no other test uses. */
export const unique = (word) => `node-${word}-${process.pid}-${++names}`

/** A URL of the backend at which managers of this process meet. */
export const shared = (url) => (url === 'memory:' ? `memory:${unique('store')}` : url)

/** Waits until `condition` holds; fails after `limit` milliseconds. */
export async function eventually(what, condition, limit = 20_000) {
  const end = Date.now() + limit
  while (!(await condition())) {
    assert.ok(Date.now() < end, `not within ${limit} ms: ${what}`)
    await sleep(5)
  }
}

/** Waits until `signal` is aborted, which it may have been before. */
export const aborted = (signal) => (signal.aborted ? undefined : once(signal, 'abort'))

/** Runs `check` with a plain client of the Redis at `url`. */
export async function withRedis(url, check) {
  const client = new Redis(url)
  try {
    return await check(client)
  } finally {
    client.disconnect()
  }
}

/** Runs a module in a Node of its own; resolves to its status and output, or fails after `limit` milliseconds. */
export function runNode(source, { args = [], flags = [], limit = 30_000, type = 'module' } = {}) {
  const all = [...flags, `--input-type=${type}`, '--eval', source, '--', ...args]
  const child = spawn(process.execPath, all, {
    // Where `polylock` is this package.
    cwd: fileURLToPath(new URL('..', import.meta.url)),
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  return new Promise((resolve, reject) => {
    let output = ''
    let errors = ''
    const began = Date.now()
    const timer = setTimeout(() => {
      child.kill('SIGKILL')
      reject(new Error(`hangs; it wrote: ${output}${errors}`))
    }, limit)
    child.stdout.on('data', (data) => (output += data))
    child.stderr.on('data', (data) => (errors += data))
    child.on('error', reject)
    child.on('close', (status, signal) => {
      clearTimeout(timer)
      resolve({ status, signal, output, errors, took: Date.now() - began })
    })
  })
}

/** A port of the loopback where nobody listens. */
export async function closedPort() {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address()
  server.close()
  await once(server, 'close')
  return port
}
