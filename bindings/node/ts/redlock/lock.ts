/** The locks of redlock 4 and 5. */

import * as arg from '../check.js'
import type { Callback } from './promises.js'
import type { ExecutionResult, ExecutionStats } from './stats.js'

/** The operations of a Redlock that its locks lead to. */
export interface Operations {
  unlock(lock: Lock, callback?: Callback<void>): Promise<void>
  release(lock: Lock): Promise<ExecutionResult & void>
  extend(lock: Lock, duration: number, callback?: Callback<Lock>): Promise<Lock>
}

/** The list of what may be one alone. */
export function listOf(resource: string | string[]): string[] {
  return Array.isArray(resource) ? resource : [resource]
}

/** What a lock is of, also one that a program made of what it kept or was sent, under either version's name. */
export function resourcesOf(lock: Lock): string[] {
  return listOf(lock.resource ?? lock.resources)
}

/**
 * The names of resources as Redis gets them from the usual clients: each once, and the text of a number, an id or the like.
 */
export function namesOf(resources: readonly unknown[]): string[] {
  const names = resources.map(nameOf)
  return names.length < 2 ? names : [...new Set(names)]
}

function nameOf(resource: unknown): string {
  const hasText =
    typeof resource === 'number' ||
    typeof resource === 'bigint' ||
    (typeof resource === 'object' && resource !== null && resource.toString !== Object.prototype.toString)
  return arg.string('resource', hasText ? String(resource) : resource)
}

type Attempts = ReadonlyArray<Promise<ExecutionStats>>

/** A number for redlock 4, a list for redlock 5: typed as both, so that programs of either compile as they are. */
type EitherAttempts = number & Attempts

/** A held lock. Programs make some, too: of what they kept of a lock, as another process may have. */
export class Lock {
  readonly redlock: Operations
  /** What is locked: always a list, as in both versions. */
  resource: string[]
  /** The same under its name in redlock 5. */
  readonly resources: string[]
  /** What the servers keep under the names of the resources. */
  value: string
  /** Until when it may be relied on, as `Date.now()` counts; 0 once it was released. */
  expiration: number
  /** redlock 4: how often it was tried. redlock 5: what became of each try. */
  attempts: EitherAttempts
  /** redlock 4: how often it could have been tried more. */
  attemptsRemaining: number | undefined

  constructor(
    redlock: Operations,
    resource: string | string[],
    value: string,
    expiration: number,
    attempts?: number,
    attemptsRemaining?: number,
  )
  constructor(redlock: Operations, resources: string[], value: string, attempts: Attempts, expiration: number)
  constructor(
    redlock: Operations,
    resource: string | string[],
    value: string,
    fourth: number | Attempts,
    fifth?: number,
    attemptsRemaining?: number,
  ) {
    const isOf4 = typeof fourth === 'number'
    this.redlock = redlock
    this.resource = listOf(resource)
    this.resources = this.resource
    this.value = value
    this.expiration = isOf4 ? fourth : (fifth ?? 0)
    this.attempts = (isOf4 ? fifth : fourth) as EitherAttempts
    this.attemptsRemaining = attemptsRemaining
  }

  /** redlock 4: releases it. */
  unlock(callback?: Callback<void>): Promise<void> {
    return this.redlock.unlock(this, callback)
  }

  /** redlock 5: releases it. */
  release(): Promise<ExecutionResult> {
    return this.redlock.release(this)
  }

  /** Makes it last until `duration` milliseconds from now. redlock 4: resolves to this lock; redlock 5: to a new one. */
  extend(duration: number, callback?: Callback<Lock>): Promise<this> {
    return this.redlock.extend(this, duration, callback) as Promise<this>
  }
}
