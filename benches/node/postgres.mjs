// polylock beside npm's advisory-lock on one PostgreSQL: `postgres.mjs URL`. Prints a line of JSON per comparison.
import { createRequire } from 'node:module'
import process from 'node:process'

import { handOver, latency, median } from './measure.mjs'

const require = createRequire(import.meta.url)
const { connect } = require('../../bindings/node')
const { default: advisoryLock } = require('advisory-lock')

const url = process.argv[2]

function ours(mode) {
  const locks = connect(`${url}?mode=${mode}`)
  const hold = async (resource) => {
    const lease = await locks.acquire(resource, { ttl: 30_000 })
    return () => lease.release()
  }
  return { name: `polylock, ${mode} mode`, hold, close: () => locks.close() }
}

const createMutex = advisoryLock(url)
const peer = { name: 'advisory-lock', hold: (resource) => createMutex(resource).lock(), close: () => {} }

for (const mode of ['session', 'lease']) {
  const contenders = [ours(mode), peer].map((each) => ({
    ...each,
    pair: async (resource) => {
      const release = await each.hold(resource)
      await release()
    },
  }))
  const row = (what, area, samples) => {
    const [us, them] = samples.map(median)
    const values = { ours: us, peer: them, peer_name: peer.name }
    console.log(JSON.stringify({ language: 'node', area, backend: 'postgres', what, unit: 'us', ...values }))
  }
  row(`acquire + release, ${mode} mode`, 'uncontended', await latency(contenders, { rounds: 20 }))
  row(`hand-over, 10 waiters, ${mode} mode`, 'hand-over', await handOver(contenders, {}))
  await Promise.all(contenders.map(({ close }) => close()))
}
