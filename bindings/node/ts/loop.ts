/** This environment's operations: starting, settling and cancelling them. */

import { isMainThread } from 'node:worker_threads'

import { reasonOf } from './check.js'
import { errorFrom } from './errors.js'
import {
  hasLibuv,
  Kind,
  native,
  once,
  type EventRecord,
  type FailedReply,
  type Replies,
  type Reply,
  type Started,
} from './native.js'
import { sourcesOf } from './signals.js'

/** How long the end of the process may take to release what is held, in milliseconds. */
const LONGEST_END = 2000

/** Operations under way, by their numbers. */
const operations = once('operations', () => new Map<number, Operation<unknown>>())
/** Whoever wants to hear what happens to leases. */
export interface Subscriber {
  told(events: EventRecord[]): void
}

/** Weakly: a manager that nobody has any more is to be collected. */
const subscribers = once('subscribers', () => new Map<number, WeakRef<Subscriber>>())
/** Whether the process ends. */
const end = once('end', () => ({ hasBegun: false }))
let hearOfLoss: (reply: Reply) => void = () => undefined

/** Makes this environment ready. Starts no thread. */
export function open(): void {
  once('opened', () => {
    check(native.open(deliver, hasLibuv))
    // A worker's leases are let go of by the addon, when the worker ends in whatever way.
    if (isMainThread) {
      process.once('exit', () => {
        end.hasBegun = true
        native.shutdown(LONGEST_END)
      })
    }
    return true
  })
}

/** Has `listener` hear of leases that were lost. */
export function onLoss(listener: (reply: Reply) => void): void {
  hearOfLoss = listener
}

/** Called by the addon from the event loop, with all that has finished. */
function deliver(...replies: Replies): void {
  let losses: Reply[] | undefined
  let told: Reply[] | undefined
  for (let at = 0; at < replies.length; at += 4) {
    const id = replies[at] as number
    const reply = [id, replies[at + 1], replies[at + 2], replies[at + 3]] as Reply
    if (reply[1] === Kind.Lost) {
      ;(losses ??= []).push(reply)
      continue
    }
    if (reply[1] === Kind.Told) {
      ;(told ??= []).push(reply)
      continue
    }
    const operation = operations.get(id)
    if (operation !== undefined) {
      operations.delete(id)
      operation.settle(reply)
    }
  }
  // Last: listeners of an AbortSignal run here and now, and may start and cancel operations.
  losses?.forEach(hearOfLoss)
  told?.forEach((reply) => {
    if (reply[1] === Kind.Told) subscribers.get(reply[0])?.deref()?.told(reply[2])
  })
}

/** Has `subscriber` told of what happens to a manager's leases; gives the number for `unsubscribe`. */
export function subscribe(manager: number, subscriber: Subscriber): number {
  const reply = check(native.subscribe(manager))
  const id = reply[1] === Kind.Number ? reply[2] : 0
  subscribers.set(id, new WeakRef(subscriber))
  return id
}

export function unsubscribe(subscription: number): void {
  subscribers.delete(subscription)
  native.unsubscribe(subscription)
}

/** What one signal cancels: the signal has one listener for all, since Node takes many for a leak and warns. */
class Cancellation {
  private static readonly all = new WeakMap<AbortSignal, Cancellation>()
  private readonly operations = new Set<Operation<unknown>>()
  /** Kept with the operations. */
  readonly sources: readonly AbortSignal[]
  /** A function: polyfills know no other listeners. */
  private readonly listener = (): void => {
    for (const operation of [...this.operations]) operation.cancel(reasonOf(this.signal))
  }

  private constructor(private readonly signal: AbortSignal) {
    this.sources = sourcesOf(signal)
    signal.addEventListener('abort', this.listener)
    Cancellation.all.set(signal, this)
  }

  static of(signal: AbortSignal): Cancellation {
    return Cancellation.all.get(signal) ?? new Cancellation(signal)
  }

  add(operation: Operation<unknown>): void {
    this.operations.add(operation)
  }

  delete(operation: Operation<unknown>): void {
    this.operations.delete(operation)
    if (this.operations.size > 0) return
    Cancellation.all.delete(this.signal)
    this.signal.removeEventListener('abort', this.listener)
  }
}

/** One that has been started and not settled. */
class Operation<T> {
  private cancellation: Cancellation | undefined

  constructor(
    private readonly id: number,
    private readonly convert: (reply: Reply) => T,
    private readonly resolve: (value: T) => void,
    private readonly reject: (reason: unknown) => void,
  ) {
    operations.set(id, this as Operation<unknown>)
  }

  /** Has `signal` cancel it, or a signal that takes no listener. */
  cancelBy(signal: AbortSignal): void {
    try {
      this.cancellation = Cancellation.of(signal)
      this.cancellation.add(this as Operation<unknown>)
    } catch (error) {
      this.cancel(error)
    }
  }

  settle(reply: Reply): void {
    this.cancellation?.delete(this as Operation<unknown>)
    try {
      this.resolve(this.convert(reply))
    } catch (error) {
      this.reject(error)
    }
  }

  cancel(reason: unknown): void {
    if (!native.cancel(this.id)) return // it is settled, or about to be
    operations.delete(this.id)
    this.cancellation?.delete(this as Operation<unknown>)
    this.reject(reason)
  }
}

/**
 * The promise of what `convert` makes of the reply. A `signal` that is aborted first cancels the operation (what it won is given back)
 * and rejects with the signal's reason.
 *
 * At the end of the process nothing becomes of it, as of all that is not synchronous then. A listener of `exit` that releases a lease
 * could not even handle an error: Node would print it, and end with the status of a failure.
 */
export function run<T>(started: Started, convert: (reply: Reply) => T, signal?: AbortSignal): Promise<T> {
  if (end.hasBegun) return new Promise(() => undefined)
  if (typeof started === 'number') {
    return new Promise((resolve, reject) => {
      const operation = new Operation(started, convert, resolve, reject)
      if (signal !== undefined) operation.cancelBy(signal)
    })
  }
  try {
    return Promise.resolve(convert(started))
  } catch (error) {
    return Promise.reject(error as Error)
  }
}

/** The reply, unless it is an error. */
export function check(reply: Reply, resource?: string): Exclude<Reply, FailedReply> {
  if (reply[1] === Kind.Failed) throw errorFrom(reply[2], resource)
  return reply
}
