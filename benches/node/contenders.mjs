// The libraries that are compared, each under the same three calls: `pair` takes and releases a lock, `hold` takes one and
// gives what releases it, `close`. The usual client of all others is ioredis.
import { createRequire } from 'node:module'

const require = createRequire(import.meta.url)
const { connect } = require('../../bindings/node')
const PolyRedlock = require('../../bindings/node/dist/redlock.js')
const { Redis } = require('ioredis')
const Redis4 = require('ioredis4')
const Redlock4 = require('redlock4')
// The package's entry for import is not one that Node resolves; the one for require is.
const { default: Redlock5 } = require('redlock')
const { Mutex, RedlockMutex } = require('redis-semaphore')
const { createLock, createRedlock, IoredisAdapter } = require('redlock-universal')

export const ttl = 30_000
/** How often those ask again that have to: more often than by default, in their favour. In milliseconds. */
const again = 10
const often = 100_000

function ioredis(urls, Client = Redis) {
  const clients = urls.map((url) => new Client(url))
  for (const client of clients) client.on('error', () => {})
  return {
    clients,
    close: () => clients.forEach((client) => client.disconnect()),
  }
}

function ours(urls) {
  const locks = connect(urls)
  const hold = async (name) => {
    const lease = await locks.acquire(name, { ttl })
    return () => lease.release()
  }
  const pair = async (name) => {
    const lease = await locks.acquire(name, { ttl })
    await lease.release()
  }
  return { name: 'polylock', pair, hold, close: () => locks.close() }
}

function dropIn(urls) {
  const redlock = new PolyRedlock(urls, {
    retryCount: often,
    retryDelay: again,
    retryJitter: again / 2,
  })
  const hold = async (name) => {
    const lock = await redlock.acquire([name], ttl)
    return () => lock.release()
  }
  const pair = async (name) => {
    const lock = await redlock.acquire([name], ttl)
    await lock.release()
  }
  return { name: 'polylock/redlock', pair, hold, close: () => redlock.quit() }
}

function redlock4(urls) {
  const { clients, close } = ioredis(urls, Redis4)
  const redlock = new Redlock4(clients, {
    retryCount: often,
    retryDelay: again,
    retryJitter: again / 2,
  })
  redlock.on('clientError', () => {})
  const hold = async (name) => {
    const lock = await redlock.lock(name, ttl)
    return () => lock.unlock()
  }
  const pair = async (name) => {
    const lock = await redlock.lock(name, ttl)
    await lock.unlock()
  }
  return { name: 'redlock 4.2', pair, hold, close }
}

function redlock5(urls) {
  const { clients, close } = ioredis(urls)
  const redlock = new Redlock5(clients, {
    retryCount: often,
    retryDelay: again,
    retryJitter: again / 2,
  })
  redlock.on('error', () => {})
  const hold = async (name) => {
    const lock = await redlock.acquire([name], ttl)
    return () => lock.release()
  }
  const pair = async (name) => {
    const lock = await redlock.acquire([name], ttl)
    await lock.release()
  }
  return { name: 'redlock 5 beta', pair, hold, close }
}

function semaphore(urls) {
  const { clients, close } = ioredis(urls)
  const options = {
    lockTimeout: ttl,
    retryInterval: again,
    acquireTimeout: 600_000,
  }
  const make = (name) =>
    clients.length === 1 ? new Mutex(clients[0], name, options) : new RedlockMutex(clients, name, options)
  const hold = async (name) => {
    const mutex = make(name)
    await mutex.acquire()
    return () => mutex.release()
  }
  const pair = async (name) => {
    const mutex = make(name)
    await mutex.acquire()
    await mutex.release()
  }
  return { name: 'redis-semaphore', pair, hold, close }
}

function universal(urls) {
  const { clients, close } = ioredis(urls)
  const adapters = clients.map((client) => new IoredisAdapter(client))
  const options = { ttl, retryDelay: again, retryAttempts: often }
  const make = (key) =>
    adapters.length === 1
      ? createLock({
          adapter: adapters[0],
          key,
          performance: 'lean',
          ...options,
        })
      : createRedlock({ adapters, key, ...options })
  const hold = async (name) => {
    const lock = make(name)
    const handle = await lock.acquire()
    return () => lock.release(handle)
  }
  const pair = async (name) => {
    const lock = make(name)
    await lock.release(await lock.acquire())
  }
  return { name: 'redlock-universal', pair, hold, close }
}

/** Opens all of them on the servers at `urls`. */
export function open(urls) {
  return [ours, dropIn, redlock4, redlock5, semaphore, universal].map((make) => make(urls))
}
