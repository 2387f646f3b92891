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

const PERMITS = 2
// More than there are.
const ANY = 1_000_000
// In milliseconds: of a lock that its ttl does not end while it is looked whether anything is left, and how long a server
// may take for it.
const [LONG, HASTY] = [60_000, 200]

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

// As the name and the dice say, and whether it is held alone.
async function acquire(locks, name, attempt, options) {
  if (name.startsWith('permits:')) {
    tell('beside', name, attempt, PERMITS - 1)
    return [await locks.semaphore(name, PERMITS).acquire(options), false]
  }
  if (name.startsWith('rw:') && random() < 0.7) {
    tell('beside', name, attempt, ANY)
    return [await locks.shared(name).acquire(options), false]
  }
  return [await locks.acquire(name, options), true]
}

// Breaks the lock of whoever has it.
async function takeAway(locks, name, attempt) {
  try {
    const token = (await locks.inspect(name))?.fencingToken
    if (!token) return
    tell('breaks', name, attempt, token)
    if (await locks.break(name, token)) tell('broke', name, attempt, token)
  } catch (error) {
    if (!(error instanceof PolylockError)) throw error
    await sleep(50)
  }
}

async function once(name, attempt) {
  if (name.startsWith('!')) return takeAway(patient, name.slice(1), attempt)
  const locks = name.startsWith('long:') ? hasty : patient
  const [isBroken, lapses] = [name.startsWith('own:'), name.startsWith('lapses:')]
  const lasts = isBroken ? 1000 : lapses ? 300 : 300 + random() * 700
  const ttl = name.startsWith('long:') ? LONG : lasts
  const wait = choose([0, 500, 2000])
  const autoExtend = isBroken || (!lapses && random() < 0.7)
  tell('call', name, attempt, wait)
  if (!autoExtend) tell('lasts', name, attempt, Math.ceil(ttl))
  let lease, alone
  try {
    ;[lease, alone] = await acquire(locks, name, attempt, { ttl, wait, autoExtend })
  } catch (error) {
    if (!(error instanceof PolylockError)) throw error
    tell('failed', name, attempt, error.name)
    if (!(error instanceof AcquireTimeoutError)) await sleep(50)
    return
  }
  tell('granted', name, attempt, lease.fencingToken)
  lease.signal.addEventListener('abort', () => tell('lost', name, attempt, lease.loss))
  if (alone) tell('wrote', name, attempt, await write(name, lease.fencingToken))
  await hold(lease, (isBroken || lapses ? 1.6 : choose([0, 0.1, 0.3, 1.6])) * lasts || 20, name, attempt)
  if (random() < 0.3) {
    tell('extend', name, attempt)
    await lease.extend().catch((error) => tell('unextended', name, attempt, error.name))
    await hold(lease, 20, name, attempt)
  }
  // Also if it was lost meanwhile: then the store is what stands between us and the next holder.
  if (alone) tell('wrote', name, attempt, await write(name, lease.fencingToken))
  tell('release', name, attempt)
  tell('released', name, attempt, await lease.release())
}

const ends = now() + BigInt(Math.round(Number(seconds) * 1e9))
const patient = connect(url)
const hasty = connect(url, { nodeTimeout: HASTY })
let attempt = 1
for (; now() < ends; attempt++) await once(choose(names), attempt)
await once(names.at(-1), attempt)
tell('rest', '-', 0)
for await (const _ of process.stdin);
await Promise.all([patient.close(), hasty.close()])
tell('end', '-', 0)
socket.destroy()
