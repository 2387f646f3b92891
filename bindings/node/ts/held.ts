/**
 * The leases of this environment that are held.
 *
 * One that nobody can release any more is to be released. To have the garbage collector watch each of them would cost
 * more than all the rest that JavaScript does for a lock. So a lease is kept here until a collection has gone by, which
 * few live to see; from then on it is known weakly, and the next collection tells whether anybody had it.
 */

import type { LossReason } from './errors.js'
import { Kind, native, once, type Reply } from './native.js'

/** What this needs to know of a lease. */
export interface Held {
  /** Whether somebody waits to be told of its loss, and so must not lose it. */
  isAwaited(): boolean
  lost(reason: LossReason): void
}

class Leases {
  /** By their numbers. */
  readonly #leases = new Map<number, Held | WeakRef<Held>>()
  /** Hears of collections, by what becomes of an object that nobody has. */
  readonly #collections = new FinalizationRegistry<undefined>(() => this.#afterCollection())
  #watching = false

  keep(id: number, lease: Held): void {
    this.#leases.set(id, lease)
    if (!this.#watching) this.#watch()
  }

  letGo(id: number): void {
    this.#leases.delete(id)
  }

  /** Tells the lease that it was lost. */
  tellLoss(reply: Reply): void {
    const known = this.#leases.get(reply[0])
    const lease = known instanceof WeakRef ? known.deref() : known
    if (reply[1] === Kind.Lost) lease?.lost(reply[2])
  }

  #watch(): void {
    this.#watching = true
    this.#collections.register({}, undefined)
  }

  #afterCollection(): void {
    this.#watching = false
    for (const [id, known] of this.#leases) {
      const lease = known instanceof WeakRef ? known.deref() : known
      if (lease === undefined) this.#abandoned(id)
      else if (lease.isAwaited()) this.#leases.set(id, lease)
      else if (lease === known) this.#leases.set(id, new WeakRef(lease))
    }
    if (this.#leases.size > 0) this.#watch()
  }

  #abandoned(id: number): void {
    this.#leases.delete(id)
    const resource = native.forgetLease(id)
    if (resource === null) return
    const message = `The lease of ${JSON.stringify(resource)} was garbage-collected while it was held; it is released now. Release leases yourself.`
    process.emitWarning(message, { type: 'PolylockWarning', code: 'POLYLOCK_LEASE_COLLECTED' })
  }
}

export const held = once('held', () => new Leases())
