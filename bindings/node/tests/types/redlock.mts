// Programs of redlock 5 must compile against polylock/redlock: checked by `npm run typecheck`, never run.

import { Redis } from 'ioredis'
import Redlock, { type ExecutionError, type Lock, type RedlockAbortSignal, ResourceLockedError } from 'polylock/redlock'

const redlock = new Redlock([new Redis()], {
  driftFactor: 0.01,
  retryCount: 10,
  retryDelay: 200,
  retryJitter: 200,
  automaticExtensionThreshold: 500,
})

redlock.on('error', (error) => {
  if (error instanceof ResourceLockedError) return
  throw error
})

let lock: Lock = await redlock.acquire(['a', 'b'], 5000, { retryCount: 0 })
lock = await lock.extend(5000)
const { attempts } = await lock.release()
const quorum: number | undefined = (await attempts[0])?.quorumSize

const result: number = await redlock.using(['a'], 5000, { retryCount: 5 }, async (signal: RedlockAbortSignal) => {
  if (signal.aborted) throw signal.error
  return 5
})
const tried = (error: ExecutionError): number => error.attempts.length

// @ts-expect-error a duration is a number
void redlock.acquire(['a'], '5000')

export { quorum, result, tried }
