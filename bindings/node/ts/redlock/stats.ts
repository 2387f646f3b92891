/** What became of the tries, as redlock 5 tells it. */

import { AcquireTimeoutError, ClosedError, LockLostError, UnavailableError } from '../errors.js'
import type { Client } from './clients.js'
import { ExecutionError, ResourceLockedError } from './errors.js'

/**
 * One try. The engine answers for all servers together: they are all said to have voted as the try ended.
 */
export interface ExecutionStats {
  readonly membershipSize: number
  readonly quorumSize: number
  readonly votesFor: Set<Client>
  readonly votesAgainst: Map<Client, Error>
}

export interface ExecutionResult {
  attempts: ReadonlyArray<Promise<ExecutionStats>>
  start: number
}

/** Tries that are remembered: with endless retries there is no end to them. */
const MOST_TRIES = 100

/** The tries of one operation. */
export class Tries {
  readonly start = Date.now()
  readonly attempts: Promise<ExecutionStats>[] = []
  count = 0
  /** What the last one failed with. */
  cause: unknown = undefined

  constructor(
    private readonly clients: readonly Client[],
    private readonly resources: number,
  ) {}

  /** Notes a try that succeeded, or what it failed with; gives the errors that are not just "held by somebody else". */
  add(error?: unknown): Error[] {
    this.count++
    this.cause = error
    const vote = error === undefined ? undefined : this.#vote(error)
    const votesAgainst = new Map(vote === undefined ? [] : this.clients.map((client) => [client, vote]))
    this.attempts.push(
      Promise.resolve({
        membershipSize: this.clients.length,
        quorumSize: Math.floor(this.clients.length / 2) + 1,
        votesFor: new Set(vote === undefined ? this.clients : []),
        votesAgainst,
      }),
    )
    if (this.attempts.length > MOST_TRIES) this.attempts.shift()
    return vote === undefined || vote instanceof ResourceLockedError ? [] : this.clients.map(() => vote)
  }

  /** What all servers say of a lock that is not, or not any more, the caller's. */
  refused(): ResourceLockedError {
    return new ResourceLockedError(`The operation was applied to: 0 of the ${this.resources} requested resources.`)
  }

  /** That it came to nothing, as redlock 5 tells it. */
  failed(message: string): ExecutionError {
    return new ExecutionError(message, this.attempts, { cause: this.cause })
  }

  #vote(error: unknown): Error {
    if (error instanceof AcquireTimeoutError || error instanceof LockLostError) return this.refused()
    // What ioredis says, and so what programs look for.
    if (error instanceof UnavailableError || error instanceof ClosedError) {
      return new Error('Connection is closed.', { cause: error })
    }
    return error as Error
  }
}
