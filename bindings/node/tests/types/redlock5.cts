// Programs of redlock 5 that are compiled to CommonJS, also without esModuleInterop. What is named and typed here are redlock 5's own types.

import { type Cluster, Redis } from 'ioredis'
import Redlock, {
  ExecutionError,
  type ExecutionResult,
  type ExecutionStats,
  Lock,
  type Settings,
} from 'polylock/redlock'

const client = new Redis()

export class Locks {
  private readonly redlock: Redlock = new Redlock(
    new Set<Redis | Cluster>([client]),
    {},
    { acquireScript: (text) => text },
  )
  private lock?: Lock

  async take(settings?: Partial<Settings>): Promise<Lock> {
    this.lock = await this.redlock.acquire(['a', 'b'], 5000, settings)
    for (const attempt of this.lock.attempts) {
      const { votesFor }: ExecutionStats = await attempt
      for (const client of votesFor) client.disconnect()
    }
    this.lock = await this.redlock.extend(this.lock, 5000, { retryCount: 0 })
    return this.lock
  }

  free(lock: Lock): Promise<ExecutionResult> {
    return lock.expiration > Date.now() ? lock.release() : this.redlock.release(lock, { retryCount: 0 })
  }

  close(): Promise<void> {
    return this.redlock.quit()
  }
}

export class Logging extends Redlock {
  async acquire(resources: string[], duration: number, settings?: Partial<Settings>): Promise<Lock> {
    console.log(resources)
    return super.acquire(resources, duration, settings)
  }
}

export const tries = (thing: unknown): number =>
  thing instanceof ExecutionError || thing instanceof Lock ? thing.attempts.length : 0
export const made: Lock = new Lock(new Logging([client]), ['a'], 'value', [], Date.now())
