// The same module for `import`: there is one copy of the classes, so that `instanceof` holds across both.

export {
  AcquireTimeoutError,
  AuthError,
  ClosedError,
  ConflictError,
  connect,
  ForkedError,
  InternalError,
  InvalidArgumentError,
  LockLostError,
  PolylockError,
  UnavailableError,
  UnsupportedError,
} from './index.js'
export type {
  AcquireOptions,
  Capabilities,
  ConnectOptions,
  ErrorCode,
  Holder,
  Lease,
  Lock,
  LockEvent,
  LockEventName,
  LockEvents,
  LockManager,
  LossReason,
  Metric,
  Release,
  TryOptions,
} from './index.js'
