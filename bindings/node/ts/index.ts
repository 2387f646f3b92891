/**
 * polylock: one lock engine, every language.
 *
 * Takes, renews and releases distributed locks on servers that you already run, or on files where there is none.
 * Times are in milliseconds.
 *
 * @packageDocumentation
 */

export { connect } from './manager.js'
export type {
  AcquireOptions,
  Capabilities,
  ConnectOptions,
  Holder,
  Lock,
  LockManager,
  Metric,
  TryOptions,
} from './manager.js'
export type { LockEvent, LockEventName, LockEvents } from './events.js'
export type { Lease, Release } from './lease.js'
export {
  AcquireTimeoutError,
  AuthError,
  ClosedError,
  ConflictError,
  ForkedError,
  InternalError,
  InvalidArgumentError,
  LockLostError,
  PolylockError,
  UnavailableError,
  UnsupportedError,
} from './errors.js'
export type { ErrorCode, LossReason } from './errors.js'
