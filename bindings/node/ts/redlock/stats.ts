/** What became of the tries, as redlock 5 tells it. */

import { AcquireTimeoutError, ClosedError, LockLostError, UnavailableError } from '../errors.js'
import type { AnyClient, Client } from './clients.js'
import { ExecutionError, ResourceLockedError } from './errors.js'

/**
 * One try. The engine answers for all servers together: they are all said to have voted as the try ended.
 */
export interface ExecutionStats {
  readonly membershipSize: number
  readonly quorumSize: number
  readonly votesFor: Set<AnyClient>
  readonly votesAgainst: Map<AnyClient, Error>
}

export interface ExecutionResult {
  attempts: ReadonlyArray<Promise<ExecutionStats>>
  start: number
}

/** Tries that are remembered: with endless retries there is no end to them. */
const MOST_TRIES = 100

/** Those who vote on one Redlock's operations. */
export class Voters {
  readonly #clients: readonly Client[]
  /** What is told of every try that succeeded. */
  readonly allFor: Promise<ExecutionStats>

  constructor(clients: readonly Client[]) {
    this.#clients = clients
    this.allFor = this.#stats(new Set(clients), new Map())
  }

  allAgainst(error: Error): Promise<ExecutionStats> {
    return this.#stats(new Set(), new Map(this.#clients.map((client) => [client, error])))
  }

  /** What each of them has to say. */
  each<T>(said: T): T[] {
    return this.#clients.map(() => said)
  }

  async #stats(votesFor: Set<Client>, votesAgainst: Map<Client, Error>): Promise<ExecutionStats> {
    const membershipSize = this.#clients.length
    return { membershipSize, quorumSize: Math.floor(membershipSize / 2) + 1, votesFor, votesAgainst }
  }
}

/** The tries of one operation. */
export class Tries {
  readonly start = Date.now()
  /** When the last one began. */
  began = this.start
  readonly attempts: Promise<ExecutionStats>[] = []
  count = 0
  /** What the last one failed with. */
  cause: unknown = undefined

  constructor(
    private readonly voters: Voters,
    private readonly resources: number,
  ) {}

  /** Notes a try that succeeded. */
  succeed(): void {
    this.#add(undefined, this.voters.allFor)
  }

  /** Notes tries that found it held by somebody else. */
  refuse(tries: number): void {
    const stats = this.voters.allAgainst(this.refused())
    this.count += tries
    for (let left = Math.min(tries, MOST_TRIES); left > 0; left--) this.#push(stats)
  }

  /** Notes what a try failed with; gives the errors that are not just "held by somebody else". */
  fail(error: unknown): Error[] {
    const vote = this.#vote(error)
    this.#add(error, this.voters.allAgainst(vote))
    return vote instanceof ResourceLockedError ? [] : this.voters.each(vote)
  }

  /** What all servers say of a lock that is not, or not any more, the caller's. */
  refused(): ResourceLockedError {
    return new ResourceLockedError(`The operation was applied to: 0 of the ${this.resources} requested resources.`)
  }

  /** That it came to nothing, as redlock 5 tells it. */
  failed(message: string): ExecutionError {
    return new ExecutionError(message, this.attempts, { cause: this.cause })
  }

  #add(cause: unknown, stats: Promise<ExecutionStats>): void {
    this.count++
    this.cause = cause
    this.#push(stats)
  }

  #push(stats: Promise<ExecutionStats>): void {
    this.attempts.push(stats)
    if (this.attempts.length > MOST_TRIES) this.attempts.shift()
  }

  #vote(error: unknown): Error {
    const isLost = error instanceof LockLostError && error.reason !== 'expired'
    if (error instanceof AcquireTimeoutError || isLost) return this.refused()
    if (error instanceof UnavailableError || error instanceof ClosedError) {
      // What a server answered, else what ioredis says, and so what programs look for.
      return new Error(answerOf(error.causes) ?? 'Connection is closed.', { cause: error })
    }
    return error as Error
  }
}

/** The first error that a server answered with: those of Redis begin with a word in capitals. */
function answerOf(causes: readonly string[]): string | undefined {
  return causes.map((cause) => /(?:^|: )([A-Z]{2,} .*)/s.exec(cause)?.[1]).find((answer) => answer !== undefined)
}
