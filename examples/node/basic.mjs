import { connect } from 'polylock'

const locks = connect(process.argv[2] ?? 'memory:') // or 'redis://localhost:6379'

await locks.using('invoice:42', { ttl: 10_000, wait: 5_000 }, async (lease) => {
  // The token only grows, so what you write to can refuse a holder that comes too late.
  console.log(`charging with token ${lease.fencingToken}`)
  lease.signal.throwIfAborted() // aborted if the lease is lost: hand it to fetch() and the like
})
