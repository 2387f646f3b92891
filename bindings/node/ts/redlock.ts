/**
 * `polylock/redlock`: the API of redlock 4 and of redlock 5 over the engine.
 *
 * `lock`, `unlock`, `lockWithOptions` and `disposer` are redlock 4's: promises of bluebird, callbacks, `LockError`. `acquire`
 * and `release` with a list of resources, and `using`, are redlock 5's: `ExecutionError` with `attempts`. The clients' settings are read,
 * and connections of our own opened; locks exclude those of node-redlock on the same servers.
 *
 * @packageDocumentation
 */

import { createHash, randomBytes } from 'node:crypto'
import { EventEmitter } from 'node:events'

import * as arg from './check.js'
import { closed, unanswered } from './errors.js'
import type { Lease } from './lease.js'
import { How } from './native.js'
import type { AnyClient, Client } from './redlock/clients.js'
import { ExecutionError, LockError, ResourceLockedError } from './redlock/errors.js'
import { forget, leaseOf, LockKeeper } from './redlock/leases.js'
import { listOf, Lock, namesOf, resourcesOf } from './redlock/lock.js'
import { Use } from './redlock/managers.js'
import { disposable, settle, type Callback } from './redlock/promises.js'
import { retry, type Patience, type RetrySettings, type Try } from './redlock/retries.js'
import { Tries, Voters, type ExecutionResult, type ExecutionStats } from './redlock/stats.js'

interface AllSettings extends RetrySettings {
  /** How far clocks may run apart, as a part of the duration. Default 0.01. */
  readonly driftFactor: number
  /** redlock 5: checked against the duration of `using`, which the engine extends when it is due. Default 500. */
  readonly automaticExtensionThreshold: number
}

type ScriptOption = string | ((text: string) => string)

interface Scripts {
  readonly lockScript?: ScriptOption
  readonly unlockScript?: ScriptOption
  readonly extendScript?: ScriptOption
}

interface Scripts5 {
  readonly acquireScript?: ScriptOption
  readonly releaseScript?: ScriptOption
  readonly extendScript?: ScriptOption
}

const defaults: AllSettings = {
  driftFactor: 0.01,
  retryCount: 10,
  retryDelay: 200,
  retryJitter: 100,
  automaticExtensionThreshold: 500,
}

/** What the fields with scripts say: the engine has its own. */
const scriptText = '-- polylock runs scripts of its own\n'

const NO_QUORUM = 'The operation was unable to achieve a quorum during its retry window.'

class Redlock extends EventEmitter {
  static readonly Lock = Lock
  static readonly LockError = LockError
  static readonly ExecutionError = ExecutionError
  static readonly ResourceLockedError = ResourceLockedError

  readonly driftFactor: number
  readonly retryCount: number
  readonly retryDelay: number
  readonly retryJitter: number
  /** redlock 4: the clients as they were given. */
  readonly servers: AnyClient[]
  /** redlock 5: the same. */
  readonly clients: Set<AnyClient>
  readonly settings: AllSettings
  readonly lockScript: string
  readonly unlockScript: string
  readonly extendScript: string
  readonly scripts: Readonly<Record<string, { value: string; hash: string }>>

  readonly #locks: Use
  readonly #keeper = new LockKeeper()
  readonly #voters: Voters
  /** redlock 4 asks the servers once to unlock. */
  readonly #once: AllSettings
  /** Ends the waits of this one when it is quit: others may go on with the manager. */
  readonly #quitting = new AbortController()

  /**
   * Throws `InvalidArgumentError` for a client whose settings cannot be read, `Error` if there is none.
   */
  constructor(
    clients: Iterable<Client | string | object>,
    options?: (Partial<AllSettings> & Scripts) | null,
    scripts?: Scripts5,
  ) {
    super()
    // Without a listener, an event of this name would be thrown.
    this.on('error', () => undefined)
    this.servers = arg.list('clients', clients) as Client[]
    if (this.servers.length === 0) throw new Error('Redlock must be instantiated with at least one redis client.')
    this.clients = new Set(this.servers)
    this.settings = numbers(options, defaults)
    this.driftFactor = this.settings.driftFactor
    this.retryCount = this.settings.retryCount
    this.retryDelay = this.settings.retryDelay
    this.retryJitter = this.settings.retryJitter
    this.lockScript = script(options?.lockScript ?? scripts?.acquireScript)
    this.unlockScript = script(options?.unlockScript ?? scripts?.releaseScript)
    this.extendScript = script(options?.extendScript ?? scripts?.extendScript)
    const [acquireScript, releaseScript, extendScript] = [this.lockScript, this.unlockScript, this.extendScript].map(
      (value) => ({ value, hash: createHash('sha1').update(value).digest('hex') }),
    ) as [Hashed, Hashed, Hashed]
    const [lockScript, unlockScript] = [acquireScript, releaseScript]
    this.scripts = { lockScript, unlockScript, extendScript, acquireScript, releaseScript }
    this.#locks = new Use([...this.clients], this.driftFactor)
    this.#voters = new Voters([...this.clients])
    this.#once = { ...this.settings, retryCount: 0 }
  }

  /** redlock 4: takes a lock. Rejects with `LockError`. */
  lock(resource: string | string[], ttl: number, callback?: Callback<Lock>): Promise<Lock> {
    return this._lock(resource, null, ttl, {}, callback)
  }

  /** redlock 4: as `lock`, retrying as `options` say. */
  lockWithOptions(
    resource: string | string[],
    ttl: number,
    options?: Partial<RetrySettings> | Callback<Lock>,
    callback?: Callback<Lock>,
  ): Promise<Lock> {
    return this._lock(resource, null, ttl, options, callback)
  }

  /** redlock 4: another name of `lockWithOptions`. */
  acquireWithOptions(
    resource: string | string[],
    ttl: number,
    options?: Partial<RetrySettings> | Callback<Lock>,
    callback?: Callback<Lock>,
  ): Promise<Lock> {
    return this.lockWithOptions(resource, ttl, options, callback)
  }

  /**
   * redlock 4: releases a lock, also one that another process made and whose `resource` and `value` it has. Rejects with
   * `LockError` if it was not held any more.
   */
  unlock(lock: Lock, callback?: Callback<void>): Promise<void> {
    lock.expiration = 0
    return settle(this.#unlock(lock), callback)
  }

  /** redlock 4: for bluebird's `Promise.using`. `onError` gets what releasing fails with. */
  disposer(resource: string | string[], ttl: number, onError: (error: any) => void = () => undefined): any {
    return disposable(this._lock(resource, null, ttl, {}), (lock) => this.unlock(lock).catch(onError))
  }

  /** redlock 5: takes a lock. Rejects with `ExecutionError`. With a single name or a callback: redlock 4's `lock`. */
  acquire(
    resources: string | string[],
    duration: number,
    settings?: Partial<AllSettings> | Callback<Lock>,
  ): Promise<Lock> {
    if (typeof resources === 'string' || typeof settings === 'function') {
      return this.lock(resources, duration, settings as Callback<Lock> | undefined)
    }
    return this.#acquire(resources, duration, numbers(settings, this.settings))
  }

  /**
   * Releases a lock, also one that another process made: as `unlock` if redlock 4's `lock` made it, else redlock 5's, which
   * rejects with `ExecutionError`.
   */
  release(lock: Lock, more?: Partial<AllSettings> | Callback<void>): Promise<ExecutionResult & void> {
    const isOf4 = isOfVersion4(lock) || typeof more === 'function'
    lock.expiration = 0
    // Typed as what either version gives.
    return (
      isOf4 ? this.unlock(lock, more as Callback<void> | undefined) : this.#release(lock, numbers(more, this.settings))
    ) as Promise<ExecutionResult & void>
  }

  /**
   * Makes a lock last until `duration` milliseconds from now. One of redlock 4 is changed; for one of redlock 5 there is a new
   * one. A failure leaves the lock as it was.
   */
  extend(lock: Lock, duration: number, settings?: Partial<AllSettings> | Callback<Lock>): Promise<Lock> {
    if (isOfVersion4(lock) || typeof settings === 'function') {
      return settle(this.#extend4(lock, duration, this.settings), settings as Callback<Lock> | undefined)
    }
    return this.#extend5(lock, duration, numbers(settings, this.settings))
  }

  /**
   * redlock 5: runs `routine` under a lock that the engine extends, also while the event loop is blocked. The signal is aborted when the
   * lock is lost, and has the error. Rejects with what the routine threw, whatever becomes of the release.
   */
  using<T>(resources: string[], duration: number, routine: Routine<T>): Promise<T>
  using<T>(resources: string[], duration: number, settings: Partial<AllSettings>, routine: Routine<T>): Promise<T>
  async using<T>(
    resources: string[],
    duration: number,
    settings: Partial<AllSettings> | Routine<T>,
    routine?: Routine<T>,
  ): Promise<T> {
    const [own, body] = typeof settings === 'function' ? [{}, settings] : [settings, routine]
    if (typeof body !== 'function') throw new TypeError('routine must be a function')
    checkDuration(duration)
    const all = numbers(own, this.settings)
    if (all.automaticExtensionThreshold > duration - 100) {
      throw new Error(
        'A lock `duration` must be at least 100ms greater than the `automaticExtensionThreshold` setting.',
      )
    }
    const controller = new AbortController()
    const signal: RedlockAbortSignal = controller.signal
    const names = namesOf(resources)
    if (names.length === 0) return body(signal) // there is nothing to hold
    const tries = this.#tries(names)
    const lease = await this.#acquireOf(names, duration, all, tries, How.AutoExtend)
    if (lease === null) throw tries.failed(NO_QUORUM)
    const lost = (): ExecutionError => {
      const extension = this.#tries(names)
      extension.fail(lease.signal.reason ?? extension.refused())
      return extension.failed(NO_QUORUM)
    }
    lease.signal.addEventListener('abort', () => {
      signal.error = lost()
      controller.abort(signal.error)
    })
    let result: T
    try {
      result = await body(signal)
    } catch (error) {
      await lease.end().catch(() => undefined)
      throw error
    }
    const ended = await lease.end()
    if (lease.loss !== null || ended === 'not_held') throw signal.error ?? lost()
    return result
  }

  /** Closes the clients, and our connections unless another Redlock of theirs is in use. Locks that are held stay taken until their time is over. */
  quit(callback?: Callback<void>): Promise<void> {
    // redlock 4 gives what the clients' methods gave.
    return settle(this.#quit() as Promise<unknown>, callback as Callback<unknown> | undefined) as Promise<void>
  }

  /** redlock 4's inner method, which programs call: takes a lock, or with a value extends the one that has it. */
  _lock(
    resource: string | string[],
    value: string | null,
    ttl: number,
    options?: Partial<RetrySettings> | Callback<Lock>,
    callback?: Callback<Lock>,
  ): Promise<Lock> {
    const [own, done] = typeof options === 'function' ? [{}, options] : [options, callback]
    const settings = numbers(own, this.settings)
    const resources = listOf(resource)
    if (value === null) return settle(this.#lock(resources, ttl, settings), done)
    return settle(this.#extend4(new Lock(this, resources, value, Infinity, 0), ttl, settings), done)
  }

  async #quit(): Promise<unknown[]> {
    this.#keeper.leaveAll()
    this.#quitting.abort(closed('the Redlock was quit'))
    const quitting = Promise.all(
      [...this.clients].map(async (client) => (client.quit === undefined ? client.close?.() : client.quit())),
    )
    // Ours are closed also where a client is closed already and says so, or never answers.
    quitting.catch(() => undefined)
    await this.#locks.end()
    return quitting
  }

  async #lock(resources: string[], ttl: number, settings: AllSettings): Promise<Lock> {
    const tries = this.#tries(resources)
    // redlock 4 waits for all servers, and its users look at each of them.
    const duration = durationOf(ttl)
    const taken = await this.#take(resources, duration, settings, tries, How.Thorough)
    if (taken === null) throw exceeded(resources, settings, tries)
    const remaining = settings.retryCount - tries.count
    return new Lock(this, resources, taken.ownerToken, this.#until(taken, duration, settings), tries.count, remaining)
  }

  async #unlock(lock: Lock): Promise<void> {
    const resources = resourcesOf(lock)
    const tries = this.#tries(resources)
    if (!(await this.#free(lock, resources, this.#once, tries))) {
      const message = `Unable to fully release the lock on resource "${String(resources)}".`
      throw new LockError(message, undefined, { cause: tries.cause })
    }
  }

  async #extend4(lock: Lock, ttl: number, settings: AllSettings): Promise<Lock> {
    if (lock.expiration < Date.now()) {
      const why = 'because the lock has already expired.'
      throw new LockError(`Cannot extend lock on resource "${String(lock.resource)}" ${why}`, 0)
    }
    const resources = resourcesOf(lock)
    const tries = this.#tries(resources)
    const until = await this.#prolong(lock, resources, durationOf(ttl), settings, tries)
    if (until === null) throw exceeded(resources, settings, tries)
    lock.expiration = until
    lock.attempts = tries.count as typeof lock.attempts
    lock.attemptsRemaining = settings.retryCount - tries.count
    return lock
  }

  async #acquire(resources: string[], duration: number, settings: AllSettings): Promise<Lock> {
    checkDuration(duration)
    const tries = this.#tries(resources)
    const taken = await this.#take(resources, duration, settings, tries, 0)
    if (taken === null) throw tries.failed(NO_QUORUM)
    return new Lock(this, resources, taken.ownerToken, tries.attempts, this.#until(taken, duration, settings))
  }

  async #release(lock: Lock, settings: AllSettings): Promise<ExecutionResult> {
    const resources = resourcesOf(lock)
    const tries = this.#tries(resources)
    if (!(await this.#free(lock, resources, settings, tries))) throw tries.failed(NO_QUORUM)
    return { attempts: tries.attempts, start: tries.start }
  }

  async #extend5(lock: Lock, duration: number, settings: AllSettings): Promise<Lock> {
    checkDuration(duration)
    if (lock.expiration < Date.now()) throw new ExecutionError('Cannot extend an already-expired lock.', [])
    const resources = resourcesOf(lock)
    const tries = this.#tries(resources)
    const until = await this.#prolong(lock, resources, duration, settings, tries)
    if (until === null) throw tries.failed(NO_QUORUM)
    lock.expiration = 0
    return new Lock(this, resources, lock.value, tries.attempts, until)
  }

  #tries(resources: readonly string[]): Tries {
    return new Tries(this.#voters, resources.length)
  }

  /** What is taken off a duration for clocks that run apart. The engine takes off no less. */
  #drift(duration: number, { driftFactor }: AllSettings): number {
    return Math.ceil(Math.max(driftFactor, this.driftFactor) * duration) + 2
  }

  /** Until when what was taken for `ttl` may be relied on. */
  #until({ deadline }: Taken, ttl: number, settings: AllSettings): number {
    return Math.floor(deadline) - (this.#drift(ttl, settings) - this.#drift(ttl, this.settings))
  }

  /** Tries to acquire what stays, as often as the settings say; `null` if that came to nothing. */
  #take(
    resources: readonly string[],
    ttl: number,
    settings: AllSettings,
    tries: Tries,
    how: number,
  ): Promise<Taken | null> {
    const names = namesOf(resources)
    if (names.length > 0) return this.#acquireOf(names, ttl, settings, tries, how | How.Stays)
    // Which redlock locks for a program whose list happens to be empty.
    const deadline = tries.start + ttl - this.#drift(ttl, this.settings)
    const ownerToken = randomBytes(20).toString('hex')
    return this.#retry(settings, tries, () => Promise.resolve({ ownerToken, deadline }))
  }

  #acquireOf(names: string[], ttl: number, settings: AllSettings, tries: Tries, how: number): Promise<Lease | null> {
    const target = names.length === 1 ? (names[0] as string) : names
    const keeper = (how & How.Stays) === 0 ? undefined : this.#keeper
    const acquire = (patience: Patience, isLast: boolean): Promise<Lease> => {
      const all = isLast ? how | How.GivesBack : how
      return this.#locks.manager.acquireRetried(target, ttl, all, keeper, patience, this.#quitting.signal)
    }
    return this.#retry(settings, tries, acquire, true)
  }

  /** Tries to extend, as often as the settings say and as long as there is something to extend: until when it may be relied on. */
  #prolong(
    lock: Lock,
    resources: readonly string[],
    ttl: number,
    settings: AllSettings,
    tries: Tries,
  ): Promise<number | null> {
    return this.#retry(settings, tries, async () => {
      const lease = leaseOf(lock)
      if (lease !== undefined) await lease.extend(ttl)
      // What somebody else took, or what has lapsed here, may yet be there.
      else if (!(await this.#extendByValue(lock, resources, ttl))) return null
      const until = tries.began + ttl - this.#drift(ttl, settings)
      return until > Date.now() ? until : null
    })
  }

  async #extendByValue(lock: Lock, resources: readonly string[], ttl: number): Promise<boolean> {
    const names = namesOf(resources)
    return names.length === 0 || this.#locks.manager.extendFor(names, lock.value, ttl)
  }

  /**
   * Frees what `lock` holds; says whether it was held. Tries again as the settings say while the servers do not answer: then by the
   * value, as for a lock that somebody else made.
   */
  async #free(lock: Lock, resources: readonly string[], settings: AllSettings, tries: Tries): Promise<boolean> {
    const lease = leaseOf(lock)
    if (lease !== undefined) forget(lease)
    let ended = await lease?.end()
    if (ended === 'released') {
      tries.succeed()
      return true
    }
    const isInDoubt = ended === 'unknown'
    const freed = await this.#retry(settings, tries, async () => {
      if (ended === 'unknown') {
        ended = undefined
        throw unanswered(String(resources))
      }
      const owner = lock.value
      const broken = await Promise.all(namesOf(resources).map((name) => this.#locks.manager.break(name, { owner })))
      // What is gone by now was freed by the try that was not answered, which the engine goes on with.
      return broken.every((was) => was || isInDoubt) || null
    })
    return freed === true
  }

  #retry<T>(settings: AllSettings, tries: Tries, once: Try<T>, waits = false): Promise<T | null> {
    const tell = (error: Error): void => {
      this.emit('clientError', error)
      this.emit('error', error)
    }
    return retry(settings, tries, tell, once, waits)
  }
}

interface Hashed {
  value: string
  hash: string
}

/** What stands behind a lock. */
type Taken = Pick<Lease, 'ownerToken' | 'deadline'>

/** redlock 5: the signal that a routine gets. */
type RedlockAbortSignal = AbortSignal & { error?: Error }
type Routine<T> = (signal: RedlockAbortSignal) => Promise<T>

/** Those of redlock 5 have a list of attempts; what a program made of a few fields says by their names what it is. */
function isOfVersion4(lock: Lock): boolean {
  return !Array.isArray(lock.attempts) && lock.resource !== undefined
}

function exceeded(resources: readonly string[], settings: AllSettings, tries: Tries): LockError {
  const message = `Exceeded ${settings.retryCount} attempts to lock the resource "${String(resources)}".`
  return new LockError(message, tries.count, { cause: tries.cause })
}

/** redlock 4: a time that may be the text of a number, as programs read it from their environment. */
function durationOf(ttl: unknown): number {
  return arg.number('ttl', typeof ttl === 'string' && ttl !== '' ? Number(ttl) : ttl)
}

function checkDuration(duration: number): void {
  if (!Number.isInteger(duration)) throw new Error('Duration must be an integer value in milliseconds.')
}

/** The settings that are numbers; the rest as in `base`. */
function numbers(given: Partial<AllSettings> | null | undefined, base: AllSettings): AllSettings {
  if (given === undefined || given === null) return base
  const result: Record<string, number> = { ...base }
  for (const name of Object.keys(base) as (keyof AllSettings)[]) {
    const value = given[name]
    if (typeof value === 'number') result[name] = value
  }
  return result as unknown as AllSettings
}

/** The text that a custom script would have. It is not run, and so the program is told. */
function script(custom: ScriptOption | undefined): string {
  if (typeof custom !== 'function') return scriptText
  const message = 'polylock/redlock runs scripts of its own: the scripts that were given to Redlock are not used.'
  process.emitWarning(message, { type: 'PolylockWarning', code: 'POLYLOCK_REDLOCK_SCRIPTS' })
  return custom(scriptText)
}

type LockClass = Lock
type LockErrorClass = LockError
type ExecutionErrorClass = ExecutionError
type ResourceLockedErrorClass = ResourceLockedError
type CallbackOf<T> = Callback<T>
type Result = ExecutionResult
type Stats = ExecutionStats
type Signal = RedlockAbortSignal

// The names of redlock's types: of version 4 in the namespace, of version 5 as named exports.
namespace Redlock {
  export type Lock = LockClass
  export type LockError = LockErrorClass
  export type ExecutionError = ExecutionErrorClass
  export type ResourceLockedError = ResourceLockedErrorClass
  export type ExecutionResult = Result
  export type ExecutionStats = Stats
  export type RedlockAbortSignal = Signal
  export type Settings = AllSettings
  export type Options = Partial<AllSettings> & Scripts
  export type Callback<T> = CallbackOf<T>
  export type CompatibleRedisClient = AnyClient
  export type LockScriptFunction = (text: string) => string
  export type UnlockScriptFunction = LockScriptFunction
  export type ExtendScriptFunction = LockScriptFunction
}

// For `import Redlock from`, in whichever way that is compiled.
declare namespace Redlock {
  export { Redlock as default }
}
Object.defineProperty(Redlock, 'default', { value: Redlock })

export = Redlock
