/** The lease as its holder has it. */

import { AsyncResource } from 'node:async_hooks'
import { inspect } from 'node:util'

import * as arg from './check.js'
import { lostError, type LockLostError, type LossReason } from './errors.js'
import { held } from './held.js'
import { check, onLoss, run } from './loop.js'
import { Kind, native, type Reply } from './native.js'
import { isListenedTo } from './signals.js'

/** What became of a lease that was released: `unknown` expires by its ttl at the latest. */
export type Release = 'released' | 'not_held' | 'unknown'

/** Keeps leases for those who may come back for them. */
export interface Keeper {
  keep(lease: Lease): void
  lost(lease: Lease): void
}

/**
 * A held lock. It is renewed in the background (unless `autoExtend` is `false`) until it is released or lost,
 * also while this event loop is blocked.
 */
export class Lease {
  /** What is locked; the first of several. */
  readonly resource: string
  /** Proves ownership to the backend: 40 hex digits. */
  readonly ownerToken: string

  readonly #id: number
  readonly #resources: readonly string[] | undefined
  readonly #fencingToken: number
  #loss: LossReason | null = null
  /** What kept it from being extended, if it was lost for that. */
  #cause: string | undefined = undefined
  /** When it was released, as `Date.now()` counts. */
  #releasedAt: number | null = null
  #lost: AbortSignal | undefined
  #abort: (() => void) | undefined
  // Private, as all that a copy or JSON of it need not show.
  #inUse = false
  #keeper: Keeper | undefined = undefined

  /** @internal */
  constructor(resource: string | readonly string[], id: number, ownerToken: string, fencingToken: number) {
    if (typeof resource === 'string') {
      this.resource = resource
      this.#resources = undefined
    } else {
      this.resource = resource[0] ?? ''
      this.#resources = resource
    }
    this.ownerToken = ownerToken
    this.#fencingToken = fencingToken
    this.#id = id
    held.keep(id, this)
  }

  /** All that is locked, sorted. */
  get resources(): readonly string[] {
    return this.#resources ?? [this.resource]
  }

  /**
   * Greater than every earlier holder's of this resource, and below 2^53. Hand it to what you protect, and let that
   * refuse a smaller one than it has seen.
   */
  get fencingToken(): bigint {
    return BigInt(this.#fencingToken)
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
    if (this.#loss === null && this.#releasedAt === null) this.#noteLoss(native.loss(this.#id))
    return this.#loss
  }

  /**
   * Aborted when the lease is lost, with a `LockLostError` as its reason: no later than at the deadline, and never
   * after a release. Hand it to what runs under the lock. A lease whose signal somebody listens to is kept for them.
   */
  get signal(): AbortSignal {
    if (this.#lost === undefined) {
      const controller = new AbortController()
      this.#lost = controller.signal
      // What listens runs for whoever asked for the signal: an AsyncLocalStorage shall have there what it has here.
      this.#abort = AsyncResource.bind(() => controller.abort(this.lostError()))
      holders.set(this.#lost, this)
    }
    if (this.loss !== null) this.#tellLoss()
    return this.#lost
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
      if (this.#releasedAt !== null) throw this.lostError()
    } catch (error) {
      return Promise.reject(error as Error)
    }
    return run(native.extend(this.#id, ttl), (reply) => {
      // The engine's error does not say why: the lease knows.
      if (reply[1] === Kind.Failed && reply[2].code === 'Lost') throw this.lostError()
      check(reply, this.#name)
    })
  }

  /**
   * Frees the lock, in one round. Renewal stops first. Calling it again is harmless and gives `not_held`. A server that
   * does not answer is no error: it gives `unknown`, and the release goes on in the background.
   */
  release(): Promise<Release> {
    if (this.#releasedAt !== null) return Promise.resolve('not_held')
    return run(native.release(this.#id), (reply) => {
      const ended = this.#ended(reply)
      return ended === 'ended' ? 'not_held' : ended
    })
  }

  /** @internal As `release`, but `ended` for a lease that had been released or lost before. */
  end(): Promise<Release | 'ended'> {
    if (this.#releasedAt !== null) return Promise.resolve('ended')
    // With its end the engine forgets why.
    this.#noteLoss(native.loss(this.#id))
    return run(native.release(this.#id), (reply) => this.#ended(reply))
  }

  /** Releases it, for `await using`. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.release()
  }

  /** @internal Somebody's body runs under it. */
  use(): void {
    this.#inUse = true
  }

  /** @internal Told of the loss, beside the signal. */
  get keeper(): Keeper | undefined {
    return this.#keeper
  }

  /** @internal */
  set keeper(keeper: Keeper | undefined) {
    this.#keeper = keeper
  }

  /** @internal Leaves it to its ttl now. */
  leave(): void {
    check(native.leave(this.#id), this.#name)
    native.forgetLease(this.#id)
    this.#over()
  }

  /** @internal The error that says why it was lost. */
  lostError(): LockLostError {
    return lostError(this.#name, this.loss, this.#cause)
  }

  /** @internal */
  lost(reason: LossReason): void {
    if (this.#releasedAt !== null) return
    this.#noteLoss(reason)
    this.#tellLoss()
  }

  /** @internal */
  isAwaited(): boolean {
    return this.#inUse || this.#keeper !== undefined || (this.#lost !== undefined && isListenedTo(this.#lost))
  }

  /** For `console.log` and the like. */
  [inspect.custom](_depth: number, options: object): string {
    const { resources, fencingToken, isHeld } = this
    return `Lease ${inspect({ resources, fencingToken, isHeld }, options)}`
  }

  /** What errors are about. */
  get #name(): string {
    return this.resources.join(', ')
  }

  #noteLoss(reason: LossReason | null): void {
    if (this.#loss !== null || reason === null) return
    this.#loss = reason
    this.#cause = native.lastFailure(this.#id) ?? undefined
  }

  #tellLoss(): void {
    if (this.#lost?.aborted === false) this.#abort?.()
    this.#keeper?.lost(this)
  }

  #ended(reply: Reply): Release | 'ended' {
    const released = check(reply, this.#name)
    if (released[1] !== Kind.Released) return 'unknown'
    if (this.#releasedAt === null && released[3] !== undefined) this.lost(released[3])
    this.#over()
    return released[2]
  }

  #over(): void {
    if (this.#releasedAt !== null) return
    this.#releasedAt = Date.now()
    held.letGo(this.#id)
  }
}

/** Whoever has the signal of a lease has the lease: it must not be collected under their work. */
const holders = new WeakMap<AbortSignal, Lease>()

onLoss((reply) => held.tellLoss(reply))
