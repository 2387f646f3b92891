// The declarations must be right also for the oldest TypeScript: checked by `npm run typecheck`, never run.

import { connect, type Lease, LockLostError } from 'polylock'
import { REDIS_CLAIM } from 'polylock/fencing'
import { traced } from 'polylock/opentelemetry'
import { lockId } from 'polylock/postgres'
import { collect } from 'polylock/prometheus'
import Redlock, { type Lock } from 'polylock/redlock'

const locks = connect('memory:')
const lease: Lease = await locks.acquire('r', { ttl: 1000, signal: AbortSignal.timeout(5) })
const length: number = await locks.using('r', (held) => held.resources.length)
const lock: Lock = await new Redlock(['redis://localhost']).lock('r', 1000)
locks.on('lost', (event) => console.error(event.reason))

export { collect, length, lease, lock, lockId, LockLostError, REDIS_CLAIM, traced }
