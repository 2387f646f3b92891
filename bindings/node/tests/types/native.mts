// What users write must compile, and what is wrong must not: checked by `npm run typecheck`, never run.

import { AcquireTimeoutError, connect, type Lease, LockLostError, type LockManager, PolylockError } from 'polylock'

const locks: LockManager = connect(['redis://a', 'redis://b'], { prefix: 'app:', driftFactor: 0.01, nodeTimeout: 50 })

const lease: Lease = await locks.acquire('r', {
  ttl: 1000,
  wait: Infinity,
  autoExtend: false,
  maxHold: 5000,
  label: 'x',
})
const fencing: bigint = lease.fencingToken
const outcome: 'released' | 'not_held' | 'unknown' = await lease.release()
const maybe: Lease | null = await locks.tryAcquire('r', { signal: AbortSignal.timeout(5) })
const several: Lease | null = await locks.tryAcquireAll(['r', 's'], { ttl: 5 })
const length: number = await locks.usingAll(['r', 's'], { wait: 0 }, (held) => held.resources.length)
const result: number = await locks.using('r', async (held) => held.remaining)
const text: string = await locks.using('r', { wait: 0 }, () => 'sync bodies are fine')
const given: number = await locks.using('r', undefined as { wait: number } | undefined, () => 5)
const loss: 'expired' | 'taken' | 'max_hold' | null = lease.loss
const holder = await locks.inspect('r')
const token: bigint | undefined = holder?.fencingToken
await fetch('http://x', { signal: lease.signal })

{
  await using other = connect('memory:')
  await using held = await other.acquire('r')
  void held.deadline.toFixed()
}

try {
  await lease.extend(5)
} catch (error) {
  if (error instanceof LockLostError) void error.reason
  else if (error instanceof AcquireTimeoutError) void error.resource
  else if (error instanceof PolylockError && error.code === 'Unavailable') void error.causes.join()
  // @ts-expect-error there is no such code
  if (error instanceof PolylockError && error.code === 'NoSuchCode') throw error
}

// @ts-expect-error the resource is a string
void locks.acquire(5)
// @ts-expect-error a try does not wait
void locks.tryAcquire('r', { wait: 5 })
// @ts-expect-error a try does not wait
void locks.tryAcquireAll(['r'], { wait: 5 })
// @ts-expect-error options are known
void locks.acquire('r', { tll: 5 })
// @ts-expect-error it cannot be set
lease.fencingToken = 5n
// @ts-expect-error it might be nobody
void maybe.resource

export { fencing, given, length, loss, outcome, result, several, text, token }
