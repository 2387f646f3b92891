// A job that every server starts at the same time, and one of them does: `cron.mjs [URL]`.
import { connect } from 'polylock'

const locks = connect(process.argv[2] ?? 'redis://localhost:6379')

/**
 * Kept for longer than the servers' clocks are apart, so that one that is late does not do it once more.
 *
 * @param {string} job
 * @param {number} atLeast milliseconds
 * @param {() => Promise<void>} run
 */
async function once(job, atLeast, run) {
  const lease = await locks.tryAcquire(`cron:${job}`, {
    ttl: 30_000,
    maxHold: 3_600_000,
  })
  if (lease === null) return false
  try {
    await Promise.all([run(), new Promise((resolve) => setTimeout(resolve, atLeast))])
    return true
  } finally {
    await lease.release()
  }
}

// With node-cron: cron.schedule('0 3 * * *', () => once('cleanup', 60_000, cleanup))
const cleanup = async () => console.log('cleaning up')
const outcomes = await Promise.all([1, 2, 3].map(() => once('cleanup', 200, cleanup)))
console.log(outcomes.filter(Boolean).length, 'of', outcomes.length)
await locks.close()
