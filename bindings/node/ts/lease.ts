/** The lease as its holder has it. */

import * as arg from './check.js'
import { lostError, type LockLostError, type LossReason } from './errors.js'
import { check, listen, run, unlisten } from './loop.js'
import { Kind, native, type Reply } from './native.js'

/** What became of a lease that was released: `unknown` expires by its ttl at the latest. */
export type Release = 'released' | 'not_held' | 'unknown'

/**
 * A held lock. It is renewed in the background (unless `autoExtend` is `false`) until it is released or lost,
 * also while this event loop is blocked.
 */
export class Lease {
  /** What is locked; the first of several. */
  readonly resource: string
  /** All that is locked, sorted. */
  readonly resources: readonly string[]
  /** Proves ownership to the backend: 40 hex digits. */
  readonly ownerToken: string
  /**
   * Greater than every earlier holder's of this resource, and below 2^53. Hand it to what you protect, and let that
   * refuse a smaller one than it has seen.
   */
  readonly fencingToken: bigint

  readonly #id: number
  #loss: LossReason | null = null
  /** When it was released, as `Date.now()` counts. */
  #releasedAt: number | null = null
  #lost: AbortController | undefined

  /** @internal */
  constructor(resources: readonly string[], id: number, ownerToken: string, fencingToken: bigint) {
    const resource = resources[0] ?? ''
    this.resource = resource
    this.resources = resources
    this.ownerToken = ownerToken
    this.fencingToken = fencingToken
    this.#id = id
    listen(id, this)
    collected.register(this, { id, resource }, this)
  }

  /** Until when the holder may act, as `Date.now()` counts. In the past once the lease was lost or released. */
  get deadline(): number {
    return this.#releasedAt ?? native.deadline(this.#id) ?? 0
  }

  /** For how many milliseconds the holder may still act; 0 once the lease was lost or released. Asks no server. */
  get remaining(): number {
    return this.#releasedAt === null ? native.remaining(this.#id) : 0
  }

  /** Whether the holder may act now. Asks the clock, no server. */
  get isHeld(): boolean {
    return this.#releasedAt === null && native.isHeld(this.#id)
  }

  /** Why the lease was lost, or `null`. Asks the clock, so it is right even before the event loop has turned. */
  get loss(): LossReason | null {
    if (this.#loss === null && this.#releasedAt === null) this.#loss = native.loss(this.#id)
    return this.#loss
  }

  /**
   * Aborted when the lease is lost, with a `LockLostError` as its reason: no later than at the deadline, and never
   * after a release. Hand it to what runs under the lock.
   */
  get signal(): AbortSignal {
    if (this.#lost === undefined) {
      this.#lost = new AbortController()
      holders.set(this.#lost.signal, this)
    }
    if (this.loss !== null) this.#abort()
    return this.#lost.signal
  }

  /**
   * Makes the lease last until `ttl` milliseconds from now (its own ttl by default), which is also the ttl of later renewals.
   *
   * Rejects with `LockLostError` if it is not held any more, `UnavailableError` if the backend did not answer (the
   * old deadline stands), `InvalidArgumentError` for `ttl`.
   */
  extend(ttl?: number): Promise<void> {
    try {
      arg.optionalNumber('ttl', ttl)
      if (this.#releasedAt !== null) throw lostError(this.resource, this.#loss)
    } catch (error) {
      return Promise.reject(error as Error)
    }
    return run(native.extend(this.#id, ttl), (reply) => {
      check(reply, this.resource)
    })
  }

  /**
   * Frees the lock, in one round. Renewal stops first. Calling it again is harmless and gives `not_held`. A server that
   * does not answer is no error: it gives `unknown`, and the release goes on in the background.
   */
  release(): Promise<Release> {
    return this.end().then((ended) => (ended === 'ended' ? 'not_held' : ended))
  }

  /** @internal As `release`, but `ended` for a lease that had been released or lost before. */
  end(): Promise<Release | 'ended'> {
    if (this.#releasedAt !== null) return Promise.resolve('ended')
    this.#loss = this.loss
    return run(native.release(this.#id), this.#released)
  }

  /** Releases it, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.release()
  }

  /** @internal Has the end of the process, or of the worker, leave it to its ttl instead of releasing it. */
  letStay(): void {
    native.letStay(this.#id)
  }

  /** @internal Leaves it to its ttl now. */
  leave(): void {
    check(native.leave(this.#id), this.resource)
    this.#over()
  }

  /** @internal The error that says why it was lost. */
  lostError(): LockLostError {
    return lostError(this.resource, this.loss)
  }

  /** @internal */
  lost(reason: LossReason): void {
    if (this.#releasedAt !== null) return
    this.#loss ??= reason
    this.#abort()
  }

  #abort(): void {
    if (this.#lost?.signal.aborted === false) this.#lost.abort(this.lostError())
  }

  #over(): void {
    if (this.#releasedAt !== null) return
    this.#releasedAt = Date.now()
    unlisten(this.#id)
    collected.unregister(this)
    native.forgetLease(this.#id)
  }

  readonly #released = (reply: Reply): Release | 'ended' => {
    const released = check(reply, this.resource)
    this.#over()
    return released[0] === Kind.Released ? released[1] : 'unknown'
  }
}

/** Whoever has the signal of a lease has the lease: it must not be collected under their work. */
const holders = new WeakMap<AbortSignal, Lease>()

/** A lease that nobody can release any more is released here. */
const collected = new FinalizationRegistry<{ id: number; resource: string }>(({ id, resource }) => {
  const held = native.isHeld(id)
  unlisten(id)
  native.forgetLease(id)
  if (held) {
    const message = `The lease of ${JSON.stringify(resource)} was garbage-collected while it was held; it is released now. Release leases yourself.`
    process.emitWarning(message, { type: 'PolylockWarning', code: 'POLYLOCK_LEASE_COLLECTED' })
  }
})
