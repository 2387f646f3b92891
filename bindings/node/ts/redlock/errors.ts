/** The errors of redlock 4 and 5. Their messages are in their JSON as well, as programs send and log them. */

import type { ExecutionStats } from './stats.js'

/** redlock 4: an operation did not succeed. */
export class LockError extends Error {
  /** How often it was tried. */
  readonly attempts: number

  constructor(message = 'Failed to lock the resource.', attempts?: number, options?: Cause) {
    super(message, options)
    show(this)
    this.name = 'LockError'
    this.attempts = attempts as number // of a release it is not said, whatever the types of redlock 4 say
  }
}

/** redlock 5: an operation did not succeed. */
export class ExecutionError extends Error {
  /** What became of each try. */
  readonly attempts: ReadonlyArray<Promise<ExecutionStats>>

  constructor(message: string, attempts: ReadonlyArray<Promise<ExecutionStats>>, options?: Cause) {
    super(message, options)
    show(this)
    this.name = 'ExecutionError'
    this.attempts = attempts
  }
}

/** redlock 5: a server refused because the resource is held by somebody else. */
export class ResourceLockedError extends Error {
  constructor(message: string) {
    super(message)
    show(this)
    this.name = 'ResourceLockedError'
  }
}

/** `ErrorOptions`, which programs of redlock's time have no declaration of. */
interface Cause {
  cause?: unknown
}

function show(error: Error): void {
  Object.defineProperty(error, 'message', { enumerable: true })
}
