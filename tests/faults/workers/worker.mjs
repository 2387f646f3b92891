// Takes locks, holds them, writes under them and tells of all of it: `worker.mjs URL STORE LOG SEED NAMES SECONDS`.
//
// The same program exists in each language; README.md of this directory says what it does and what the lines mean.

import { openSync, writeSync } from 'node:fs'
import { createConnection } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'

import { AcquireTimeoutError, connect, PolylockError } from 'polylock'

const [url, storePath, logPath, seed, nameList, seconds] = process.argv.slice(2)
const names = nameList.split(',')
const log = openSync(logPath, 'a')
const now = () => process.hrtime.bigint()

// One line an event, each written at once: a killed worker has told all that it knew.
function tell(event, name, attempt, detail = '-', at = now()) {
  writeSync(log, `${at} ${event} ${name} ${attempt} ${detail}\n`)
}

// The guarded store, which refuses a token smaller than one that it has seen.
const socket = createConnection(storePath)
const answers = createInterface({ input: socket })[Symbol.asyncIterator]()
async function write(name, token) {
  socket.write(`${name} ${token}\n`)
  return (await answers.next()).value
}

// A small generator with a seed (mulberry32).
let state = Number(seed) >>> 0
function random() {
  state = (state + 0x6d2b79f5) >>> 0
  let mixed = Math.imul(state ^ (state >>> 15), state | 1)
  mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
  return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
}
const choose = (choices) => choices[Math.floor(random() * choices.length)]

// Asks every few milliseconds whether the lease is still held, until the time is over.
async function hold(lease, milliseconds, name, attempt) {
  const ends = now() + BigInt(Math.round(milliseconds * 1e6))
  for (let held = true; held && now() < ends; await sleep(10)) {
    const before = now()
    held = lease.isHeld
    if (held) tell('valid', name, attempt, '-', before)
    else tell('invalid', name, attempt)
  }
}

async function once(locks, attempt) {
  const name = choose(names)
  const ttl = 300 + random() * 700
  const wait = choose([0, 500, 2000])
  const autoExtend = random() < 0.7
  tell('call', name, attempt, wait)
  if (!autoExtend) tell('lasts', name, attempt, Math.ceil(ttl))
  let lease
  try {
    lease = await locks.acquire(name, { ttl, wait, autoExtend })
  } catch (error) {
    if (!(error instanceof PolylockError)) throw error
    tell('failed', name, attempt, error.name)
    if (!(error instanceof AcquireTimeoutError)) await sleep(50)
    return
  }
  tell('granted', name, attempt, lease.fencingToken)
  lease.signal.addEventListener('abort', () => tell('lost', name, attempt, lease.loss))
  tell('wrote', name, attempt, await write(name, lease.fencingToken))
  await hold(lease, choose([0, 20, 20, 0.1 * ttl, 0.3 * ttl, 1.6 * ttl]), name, attempt)
  if (random() < 0.3) {
    tell('extend', name, attempt)
    await lease.extend().catch((error) => tell('unextended', name, attempt, error.name))
    await hold(lease, 20, name, attempt)
  }
  // Also if it was lost meanwhile: then the store is what stands between us and the next holder.
  tell('wrote', name, attempt, await write(name, lease.fencingToken))
  tell('release', name, attempt)
  tell('released', name, attempt, await lease.release())
}

const ends = now() + BigInt(Math.round(Number(seconds) * 1e9))
const locks = connect(url)
for (let attempt = 1; now() < ends; attempt++) await once(locks, attempt)
await locks.close()
tell('end', '-', 0)
socket.destroy()
