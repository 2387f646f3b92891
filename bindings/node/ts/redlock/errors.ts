/** The errors of redlock 4 and 5. Their messages are in their JSON as well, as programs send and log them. */

import type { ExecutionStats } from './stats.js'

/** redlock 4: an operation did not succeed. */
export class LockError extends Error {
  override readonly message: string
  /** How often it was tried. */
  readonly attempts: number | undefined

  constructor(message = 'Failed to lock the resource.', attempts?: number, options?: ErrorOptions) {
    super(message, options)
    this.message = message
    this.name = 'LockError'
    this.attempts = attempts
  }
}

/** redlock 5: an operation did not succeed. */
export class ExecutionError extends Error {
  override readonly message: string
  /** What became of each try. */
  readonly attempts: ReadonlyArray<Promise<ExecutionStats>>

  constructor(message: string, attempts: ReadonlyArray<Promise<ExecutionStats>>, options?: ErrorOptions) {
    super(message, options)
    this.message = message
    this.name = 'ExecutionError'
    this.attempts = attempts
  }
}

/** redlock 5: a server refused because the resource is held by somebody else. */
export class ResourceLockedError extends Error {
  override readonly message: string
  constructor(message: string) {
    super(message)
    this.message = message
    this.name = 'ResourceLockedError'
  }
}
