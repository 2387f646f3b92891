// The same class for `import`, with the named exports of redlock 5.

import Redlock from './redlock.js'

export default Redlock
export const { Lock, LockError, ExecutionError, ResourceLockedError } = Redlock
export type Lock = Redlock.Lock
export type LockError = Redlock.LockError
export type ExecutionError = Redlock.ExecutionError
export type ResourceLockedError = Redlock.ResourceLockedError
export type ExecutionResult = Redlock.ExecutionResult
export type ExecutionStats = Redlock.ExecutionStats
export type RedlockAbortSignal = Redlock.RedlockAbortSignal
export type Settings = Redlock.Settings
