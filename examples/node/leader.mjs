// One of many is the leader until it loses that or stops: `leader.mjs [URL]`, once in every process.
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { connect } from 'polylock'

const locks = connect(process.argv[2] ?? 'redis://localhost:6379')
const stopping = new AbortController()
process.once('SIGTERM', () => stopping.abort())

while (!stopping.signal.aborted) {
  try {
    // Waits for as long as somebody else leads; others take over within the ttl if this process dies.
    const lease = await locks.acquire('leader', {
      ttl: 3_000,
      signal: stopping.signal,
    })
    console.log(`leads with ${lease.fencingToken}`)
    const lost = once(lease.signal, 'abort')
    await Promise.race([lost, lead(lease.signal)])
    await lease.release()
  } catch (error) {
    if (stopping.signal.aborted) break
    console.error(error) // the servers are out of reach
    await sleep(1_000, undefined, { signal: stopping.signal }).catch(() => {})
  }
}
console.log('stopped')
await locks.close()

/** @param {AbortSignal} lost */
async function lead(lost) {
  while (!lost.aborted && !stopping.signal.aborted) {
    // What the leader does.
    await sleep(50, undefined, {
      signal: AbortSignal.any([lost, stopping.signal]),
    }).catch(() => {})
  }
}
