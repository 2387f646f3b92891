// polylock, redlock and redis-semaphore on one Redis, side by side: `bench.mjs URL`. Prints a line of JSON per comparison.
import { createRequire } from 'node:module'
import { performance } from 'node:perf_hooks'
import process from 'node:process'
import { Floor } from './floor.mjs'

const require = createRequire(import.meta.url)
const { connect } = require('../../bindings/node')
const { Redis } = require('ioredis')
// The package's entry for import is not one that Node resolves; the one for require is.
const { default: Redlock } = require('redlock')
const { Mutex } = require('redis-semaphore')

const url = process.argv[2]
const rounds = 60
const pairs = 25
const warmUp = 5
const inFlight = 64
const ttl = 30_000

const median = (values) => values.sort((a, b) => a - b)[values.length >> 1]
const row = (what, unit, ours, peer, peer_name) =>
  console.log(JSON.stringify({ language: 'node', what, unit, ours, peer, peer_name }))

const locks = connect(url)
const client = new Redis(url)
const redlock = new Redlock([client], { retryCount: 0, automaticExtensionThreshold: 500 })
const floor = await Floor.open(url, 'bench:floor')

const contenders = {
  async ours(name = 'bench:ours') {
    const lease = await locks.acquire(name, { ttl })
    await lease.release()
  },
  async redlock(name = 'bench:redlock') {
    const lock = await redlock.acquire([name], ttl)
    await lock.release()
  },
  async semaphore(name = 'bench:semaphore') {
    const mutex = new Mutex(client, name, { lockTimeout: ttl })
    await mutex.acquire()
    await mutex.release()
  },
  floor: () => floor.pair(),
}

// They take turns, so that all see the same machine.
const samples = Object.fromEntries(Object.keys(contenders).map((name) => [name, []]))
for (let round = 0; round < warmUp + rounds; round++) {
  for (const [name, pair] of Object.entries(contenders)) {
    for (let i = 0; i < pairs; i++) {
      const began = performance.now()
      await pair()
      if (round >= warmUp) samples[name].push((performance.now() - began) * 1000)
    }
  }
}
const [ours, ofRedlock, ofSemaphore, ofFloor] = Object.values(samples).map(median)
row('acquire + release', 'us', ours, ofRedlock, 'redlock 5 beta')
row('acquire + release', 'us', ours, ofSemaphore, 'redis-semaphore')
row('acquire + release', 'us', ours, ofFloor, 'raw socket')

/** Pairs per second with 64 in flight. */
async function many(pair) {
  const worker = async (number) => {
    for (let i = 0; i < pairs; i++) await pair(`bench:${number}`)
  }
  const began = performance.now()
  await Promise.all(Array.from({ length: inFlight }, (_, number) => worker(number)))
  return (inFlight * pairs * 1000) / (performance.now() - began)
}
const rates = { ours: [], redlock: [], semaphore: [] }
for (let round = 0; round < 7; round++) {
  for (const name of Object.keys(rates)) rates[name].push(await many(contenders[name]))
}
row(`${inFlight} in flight`, 'pairs/s', median(rates.ours), median(rates.redlock), 'redlock 5 beta')
row(`${inFlight} in flight`, 'pairs/s', median(rates.ours), median(rates.semaphore), 'redis-semaphore')

await locks.close()
floor.close()
await client.quit()
