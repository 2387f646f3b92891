/** The leases behind the locks of redlock 4 and 5. */

import type { Keeper, Lease } from '../lease.js'
import { namesOf, resourcesOf, type Lock } from './lock.js'

/** Leases that may still be held, by the value of their lock. */
const leases = new Map<string, Lease>()

/** Keeps the leases of one Redlock's locks until they are over. */
export class LockKeeper implements Keeper {
  keep(lease: Lease): void {
    lease.keeper = this
    leases.set(lease.ownerToken, lease)
  }

  /** One that lapses leaves nothing behind. */
  lost(lease: Lease): void {
    forget(lease)
    lease.leave()
  }

  /** Leaves them to their time. */
  leaveAll(): void {
    for (const lease of leases.values()) if (lease.keeper === this) this.lost(lease)
  }
}

export function forget(lease: Lease): void {
  leases.delete(lease.ownerToken)
}

/** The lease behind a lock, if it may still be held and the lock still names its resources. */
export function leaseOf(lock: Lock): Lease | undefined {
  const lease = leases.get(lock.value)
  if (lease === undefined) return undefined
  const names = namesOf(resourcesOf(lock))
  const same = lease.resources.length === names.length && lease.resources.every((name) => names.includes(name))
  return same ? lease : undefined
}
