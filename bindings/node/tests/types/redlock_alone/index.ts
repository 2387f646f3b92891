// A program of redlock's time, whose libraries declare no more than was known then, checks these declarations as it did redlock's.

import Redlock, { ExecutionError, type Lock } from 'polylock/redlock'

const redlock = new Redlock(['redis://localhost'], { retryCount: 3 })
const lock: Promise<Lock> = redlock.acquire(['r'], 1000)
const used: Promise<number> = redlock.using(['r'], 1000, async (signal) => (signal.aborted ? 0 : 1))
const failed = (error: unknown): number => (error instanceof ExecutionError ? error.attempts.length : 0)

export { failed, lock, used }
