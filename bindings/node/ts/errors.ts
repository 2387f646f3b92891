/** The closed set of errors: names and numbers are the same in every language. */

import type { ErrorRecord } from './native.js'

/** The stable name of an error. */
export type ErrorCode =
  | 'Timeout'
  | 'Lost'
  | 'Unavailable'
  | 'InvalidArgument'
  | 'Conflict'
  | 'Unsupported'
  | 'Auth'
  | 'Closed'
  | 'Forked'
  | 'Internal'

/** Why a lease was lost: its deadline passed, the backend said that it is not ours, or `maxHold` was over. */
export type LossReason = 'expired' | 'taken' | 'max_hold'

/** Any failure of a lock operation. Decide by `code` or by class; the message is for people. */
export class PolylockError extends Error {
  /** The stable name, as in `'Timeout'`. */
  readonly code: ErrorCode
  /** The stable number. */
  readonly number: number
  /** What the operation was about. */
  readonly resource: string | undefined
  /** The argument that was wrong, for `InvalidArgument`. */
  readonly argument: string | undefined
  /** What each server said, or what the last try failed with. */
  readonly causes: readonly string[]
  /** Whether the same call may succeed later without any change. */
  readonly retryable: boolean

  /** @internal */
  constructor(record: ErrorRecord) {
    super(record.message)
    this.code = record.code as ErrorCode
    this.number = record.number
    this.resource = record.resource
    this.argument = record.argument
    this.causes = record.causes
    this.retryable = record.retryable
  }

  override get name(): string {
    return this.constructor.name
  }
}

/** The resource stayed in use for as long as the caller wanted to wait. */
export class AcquireTimeoutError extends PolylockError {}

/** The lease is not held any more. */
export class LockLostError extends PolylockError {
  /** Why, if it is known. */
  readonly reason: LossReason | undefined

  /** @internal */
  constructor(record: ErrorRecord, reason?: LossReason) {
    super(record)
    this.reason = reason
  }
}

/** The backend could not be reached, or not enough of its servers answered. */
export class UnavailableError extends PolylockError {}

/** An argument has no meaning: `argument` names it. (One of the wrong type is a `TypeError`.) */
export class InvalidArgumentError extends PolylockError {}

/** The resource is in use as something else than this kind of lock. */
export class ConflictError extends PolylockError {}

/** The backend, or this machine, cannot do this. */
export class UnsupportedError extends PolylockError {}

/** The server refused the user, the password or a permission. */
export class AuthError extends PolylockError {}

/** The manager was closed. */
export class ClosedError extends PolylockError {}

/** The object belongs to the process that this one was forked from. */
export class ForkedError extends PolylockError {}

/** A bug in polylock. */
export class InternalError extends PolylockError {}

const classes: Record<string, new (record: ErrorRecord) => PolylockError> = {
  Timeout: AcquireTimeoutError,
  Lost: LockLostError,
  Unavailable: UnavailableError,
  InvalidArgument: InvalidArgumentError,
  Conflict: ConflictError,
  Unsupported: UnsupportedError,
  Auth: AuthError,
  Closed: ClosedError,
  Forked: ForkedError,
}

/** What an argument of the engine is called here. */
function named(argument: string): string {
  return argument === 'of' ? 'permits' : argument.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase())
}

/** The error that the engine reported. */
export function errorFrom(record: ErrorRecord, resource?: string): PolylockError {
  const argument = record.argument
  const name = argument && named(argument)
  if (name !== undefined && name !== argument) {
    record = { ...record, argument: name, message: record.message.replace(argument ?? '', name) }
  }
  if (resource !== undefined && record.resource === undefined) {
    record = { ...record, resource, message: `${JSON.stringify(resource)}: ${record.message}` }
  }
  return new (classes[record.code] ?? InternalError)(record)
}

/** The error that says that a lease is over: for `reason`, and because of `cause`. */
export function lostError(resource: string, reason: LossReason | null, cause?: string): LockLostError {
  const why = {
    expired: 'its deadline passed before it could be extended',
    taken: 'the backend said that it is not ours any more',
    max_hold: 'it was held for as long as maxHold allowed',
  }
  const message = reason === null ? 'the lease is not held any more' : `the lease was lost: ${why[reason]}`
  const record = {
    number: 2,
    code: 'Lost',
    message: `${JSON.stringify(resource)}: ${message}${cause === undefined ? '' : ` (${cause})`}`,
    resource,
    causes: cause === undefined ? [] : [cause],
    retryable: false,
  }
  return new LockLostError(record, reason ?? undefined)
}

/** The error for what is asked of something that was closed. */
export function closed(message: string): ClosedError {
  return new ClosedError({ number: 8, code: 'Closed', message, causes: [], retryable: false })
}

/** The error for a release of which it is not known what became. */
export function unanswered(resource: string): UnavailableError {
  const message = `${JSON.stringify(resource)}: no server answered the release; it goes on in the background`
  return new UnavailableError({ number: 3, code: 'Unavailable', message, resource, causes: [], retryable: true })
}

/** The error for an argument that the engine cannot even be asked about. */
export function invalid(argument: string, why: string): InvalidArgumentError {
  const message = `${argument} ${why}`
  return new InvalidArgumentError({
    number: 4,
    code: 'InvalidArgument',
    message,
    argument,
    causes: [],
    retryable: false,
  })
}
