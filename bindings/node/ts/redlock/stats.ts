/** What became of the tries, as redlock 5 tells it. */

import { AcquireTimeoutError, LockLostError, UnavailableError } from '../errors.js'
import type { Client } from './clients.js'
import { ResourceLockedError } from './errors.js'

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

  constructor(
    private readonly clients: readonly Client[],
    private readonly resources: number,
  ) {}

  /** Notes a try that succeeded, or what it failed with; gives the errors that are not just "held by somebody else". */
  add(error?: unknown): Error[] {
    this.count++
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

  #vote(error: unknown): Error {
    if (error instanceof AcquireTimeoutError || error instanceof LockLostError) {
      return new ResourceLockedError(`The operation was applied to: 0 of the ${this.resources} requested resources.`)
    }
    // What ioredis says, and so what programs look for.
    if (error instanceof UnavailableError) return new Error('Connection is closed.', { cause: error })
    return error as Error
  }
}
