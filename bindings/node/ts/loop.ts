/** This environment's operations: starting, settling and cancelling them, and hearing of losses. */

import { isMainThread } from 'node:worker_threads'

import { errorFrom, type LossReason } from './errors.js'
import { Kind, native, type Reply, type Started } from './native.js'

/** How long the end of the process may take to release what is held, in milliseconds. */
const LONGEST_END = 2000

interface Operation {
  settle(reply: Reply): void
}

/** Whoever wants to hear that a lease was lost. */
export interface LossListener {
  lost(reason: LossReason): void
}

const operations = new Map<number, Operation>()
/** Weakly: a lease that nobody has any more is to be collected, and released. */
const losses = new Map<number, WeakRef<LossListener>>()
let opened = false

/** Makes this environment ready. Starts no thread. */
export function open(): void {
  if (opened) return
  check(native.open(drain))
  opened = true
  // A worker's leases are let go of by the addon, when the worker ends in whatever way.
  if (isMainThread) process.once('exit', () => native.shutdown(LONGEST_END))
}

/** Called by the addon from the event loop, once for all that has finished. */
function drain(): void {
  const taken = native.take()
  for (const [id, reply] of taken) {
    const operation = operations.get(id)
    if (operation !== undefined) {
      operations.delete(id)
      operation.settle(reply)
    }
  }
  // Last: listeners of an AbortSignal run here and now, and may start and cancel operations.
  for (const [id, reply] of taken) {
    if (reply[0] === Kind.Lost) losses.get(id)?.deref()?.lost(reply[1])
  }
}

/**
 * The promise of what `convert` makes of the reply. A `signal` that is aborted first cancels the operation (what it won is given back)
 * and rejects with the signal's reason.
 */
export function run<T>(started: Started, convert: (reply: Reply) => T, signal?: AbortSignal): Promise<T> {
  if (typeof started !== 'number') {
    try {
      return Promise.resolve(convert(started))
    } catch (error) {
      return Promise.reject(error as Error)
    }
  }
  return new Promise<T>((resolve, reject) => {
    const onAbort = (): void => {
      if (!native.cancel(started)) return // it is settled, or about to be
      operations.delete(started)
      signal?.removeEventListener('abort', onAbort)
      reject(signal?.reason as Error)
    }
    const settle = (reply: Reply): void => {
      signal?.removeEventListener('abort', onAbort)
      try {
        resolve(convert(reply))
      } catch (error) {
        reject(error as Error)
      }
    }
    operations.set(started, { settle })
    signal?.addEventListener('abort', onAbort)
  })
}

/** The reply, unless it is an error. */
export function check(reply: Reply, resource?: string): Exclude<Reply, [Kind.Failed, unknown]> {
  if (reply[0] === Kind.Failed) throw errorFrom(reply[1], resource)
  return reply
}

/** Has `listener` told of the loss of a lease. */
export function listen(lease: number, listener: LossListener): void {
  losses.set(lease, new WeakRef(listener))
}

export function unlisten(lease: number): void {
  losses.delete(lease)
}
