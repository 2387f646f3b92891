/**
 * Trying again, as often as the settings of redlock say.
 *
 * Between two tries redlock sleeps. Here, who finds a lock held waits in the engine, which is woken by the release: for as long as
 * redlock would go on trying, and looking as often, since holders of other libraries wake nobody. After that there is the last try. So a
 * program sees what it saw: how long it takes to give up, how many `attempts` there were, an event for each failure but "held by somebody else".
 */

import { setTimeout as sleep } from 'node:timers/promises'

import { AcquireTimeoutError, AuthError, ConflictError, PolylockError, UnavailableError } from '../errors.js'
import type { Tries } from './stats.js'

export interface RetrySettings {
  /** How often to try again; -1 for ever. Default 10. */
  readonly retryCount: number
  /** The time between two tries, in milliseconds. Default 200. */
  readonly retryDelay: number
  /** The most that is added to or taken from that at random. Default 100. */
  readonly retryJitter: number
}

/** How long one try may wait for a holder, and how often it is to look: in milliseconds. */
export interface Patience {
  wait: number
  every: number
}

const atOnce: Patience = { wait: 0, every: 0 }

/** No wait is as long. */
const FOR_EVER = 2 ** 53

/** What a try gives, of which the last one is told that it is: its result, or `null` if there is nothing to be tried again. */
export type Try<T> = (patience: Patience, isLast: boolean) => Promise<T | null>

/**
 * Tries, as often as the settings say; `null` if that came to nothing. `tell` is told what a try failed with, unless that is just "held by
 * somebody else". `waits`: whether a try can wait for a holder.
 */
export async function retry<T>(
  settings: RetrySettings,
  tries: Tries,
  tell: (error: Error) => void,
  once: Try<T>,
  waits: boolean,
): Promise<T | null> {
  const retries = settings.retryCount === -1 ? Infinity : Math.floor(settings.retryCount)
  const delay = settings.retryDelay || 0 // as `setTimeout` takes NaN
  let patience = atOnce
  /** What redlock would need for one more try: the pause, and what the last one took. */
  let each = 0
  for (;;) {
    const left = retries - tries.count
    tries.began = Date.now()
    const began = performance.now()
    let outcome: T | null | PolylockError
    try {
      outcome = await once(patience, patience === atOnce && !(left > 0))
    } catch (error) {
      if (!(error instanceof PolylockError)) throw error
      outcome = error
    }
    const took = performance.now() - began
    const isHeld = outcome instanceof AcquireTimeoutError
    if (patience !== atOnce) tries.refuse(isHeld ? left : Math.min(left, Math.floor(took / each)))
    if (isHeld && patience !== atOnce) {
      patience = atOnce
      continue // the last try
    }
    if (outcome === null) tries.fail(tries.refused())
    else if (outcome instanceof PolylockError) tries.fail(outcome).forEach(tell)
    else tries.succeed()
    if (!(outcome instanceof PolylockError)) return outcome
    // Written so that NaN ends it.
    if (!isRetried(outcome) || !(tries.count <= retries)) return null
    patience = atOnce
    if (waits && isHeld) {
      each = Math.max(1, delay + took)
      const wait = (retries - tries.count + 1) * each
      patience = { wait: wait < FOR_EVER ? wait : Infinity, every: Math.max(1, delay) }
    } else {
      const jitter = Math.floor((Math.random() * 2 - 1) * settings.retryJitter)
      await sleep(Math.max(0, delay + jitter))
    }
  }
}

/** Whether it makes sense to try again, unlike after a wrong argument, or when the lock is lost or the Redlock was quit. */
function isRetried(error: PolylockError): boolean {
  return [AcquireTimeoutError, ConflictError, UnavailableError, AuthError].some((kind) => error instanceof kind)
}
