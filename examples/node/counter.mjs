// Adds 1 to the number in a file, many times: `counter.mjs URL FILE COUNT [LOG]`.
//
// With `none` for a URL it takes no lock, and loses updates when several run at once. Appends each fencing token to LOG
// while it holds the lock. Prints one line of JSON.

import { appendFileSync, openSync, readSync, writeSync } from 'node:fs'
import { performance } from 'node:perf_hooks'
import { setTimeout as sleep } from 'node:timers/promises'

import { connect } from 'polylock'

const [url, file, count, log] = process.argv.slice(2)
if (count === undefined) throw new Error('usage: counter.mjs URL FILE COUNT [LOG]')
const locks = url === 'none' ? null : connect(url)
const descriptor = openSync(file, 'r+')
const waits = []
const tokens = []

for (let index = 0; index < Number(count); index++) {
  const began = performance.now()
  const lease = await locks?.acquire('counter')
  waits.push(performance.now() - began)
  if (lease !== undefined) {
    tokens.push(Number(lease.fencingToken))
    if (log !== undefined) appendFileSync(log, `${lease.fencingToken}\n`)
  }
  await addOne()
  await lease?.release()
}
console.log(
  JSON.stringify({
    language: 'Node',
    acquisitions: Number(count),
    wait_ms: waits,
    tokens,
  }),
)

/** Reads, takes a moment, writes back: wrong unless nobody else does so meanwhile. */
async function addOne() {
  const bytes = Buffer.alloc(11)
  readSync(descriptor, bytes, 0, 11, 0)
  await sleep(0.1)
  // As wide as before, so that one write replaces the whole number.
  writeSync(descriptor, `${String(Number(bytes.toString()) + 1).padStart(10, '0')}\n`, 0)
}
