/**
 * The leases of this environment that are held.
 *
 * One that nobody can release any more is to be released. To have the garbage collector watch each of them would cost
 * more than all the rest that JavaScript does for a lock. So a lease is kept here until a collection has gone by, which
 * few live to see; from then on it is known weakly, and the next collection tells whether anybody had it.
 */

import { getEventListeners } from 'node:events'

import type { LossReason } from './errors.js'
import { Kind, native, type Reply } from './native.js'

/** What this needs to know of a lease. */
export interface Held {
  /** Whether somebody waits to be told of its loss, and so must not lose it. */
  isAwaited(): boolean
  lost(reason: LossReason): void
}

/** By their numbers. */
const leases = new Map<number, Held | WeakRef<Held>>()
/** Hears of collections, by what becomes of an object that nobody has. */
const collections = new FinalizationRegistry<undefined>(afterCollection)
let watching = false

export function keep(id: number, lease: Held): void {
  leases.set(id, lease)
  if (!watching) watch()
}

export function letGo(id: number): void {
  leases.delete(id)
}

/** Tells the lease that it was lost. */
export function tellLoss(reply: Reply): void {
  const known = leases.get(reply[0])
  const lease = known instanceof WeakRef ? known.deref() : known
  if (reply[1] === Kind.Lost) lease?.lost(reply[2])
}

function watch(): void {
  watching = true
  collections.register({}, undefined)
}

function afterCollection(): void {
  watching = false
  for (const [id, known] of leases) {
    const lease = known instanceof WeakRef ? known.deref() : known
    if (lease === undefined) abandoned(id)
    else if (lease.isAwaited()) leases.set(id, lease)
    else if (lease === known) leases.set(id, new WeakRef(lease))
  }
  if (leases.size > 0) watch()
}

function abandoned(id: number): void {
  leases.delete(id)
  const resource = native.forgetLease(id)
  if (resource === null) return
  const message = `The lease of ${JSON.stringify(resource)} was garbage-collected while it was held; it is released now. Release leases yourself.`
  process.emitWarning(message, { type: 'PolylockWarning', code: 'POLYLOCK_LEASE_COLLECTED' })
}

/** Whether anybody would hear of this signal: a listener, or a signal of `AbortSignal.any`. */
export function isListenedTo(signal: AbortSignal): boolean {
  if (getEventListeners(signal, 'abort').length > 0) return true
  // Where Node keeps those signals, which know this one weakly. An undocumented place: where it is another, nothing is lost
  // but that such a signal keeps no lease.
  const place = Object.getOwnPropertySymbols(signal).find(({ description }) => description === 'kDependantSignals')
  const dependants = place && (signal as unknown as Record<symbol, unknown>)[place]
  return dependants instanceof Set && dependants.size > 0
}
