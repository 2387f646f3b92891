/** The manager: makes leases on one backend. */

import * as arg from './check.js'
import { errorFrom } from './errors.js'
import { LockEvents } from './events.js'
import { Lease, type Keeper } from './lease.js'
import { check, open, run } from './loop.js'
import {
  How,
  Kind,
  native,
  type CapabilitiesRecord,
  type FailedReply,
  type HolderRecord,
  type MetricRecord,
  type Reply,
  type Started,
} from './native.js'

/** How to connect. */
export interface ConnectOptions {
  /** Put before each resource's name to make the Redis key. Default: nothing. */
  prefix?: string | undefined
  /** How far clocks may run apart, as a part of the ttl: 0 to 0.5, default 0.01. */
  driftFactor?: number | undefined
  /** How long one server may take to answer, in milliseconds. Default: by the ttl, at most 2 s (500 ms with several servers). */
  nodeTimeout?: number | undefined
}

/** How to try. Times are in milliseconds. */
export interface TryOptions {
  /** How long the lease lasts without renewal, and so when a dead holder frees it. Default 30,000; from 3. */
  ttl?: number | undefined
  /** Whether the engine renews the lease until it is released. Default `true`. */
  autoExtend?: boolean | undefined
  /** No renewal begins later than this after the grant, so that a hung holder cannot hold for ever. Default: `Infinity`. */
  maxHold?: number | undefined
  /** What `inspect` will say of the holder. At most 256 bytes. */
  label?: string | undefined
  /**
   * Whether those who ask for this are served in the order in which they came, also those of other processes. Whoever does not
   * ask for it may still come first. A waiter that died is passed over a second later. For one exclusive resource, where
   * the backend can (`capabilities.fair`); else it rejects with `UnsupportedError`. Default `false`.
   */
  fair?: boolean | undefined
  /** Cancels it: rejects with the signal's reason, and gives back what was won. */
  signal?: AbortSignal | undefined
}

/** How to acquire. Times are in milliseconds. */
export interface AcquireOptions extends TryOptions {
  /**
   * How long to wait for a holder: 0 tries once. Default `Infinity` (a backend that is out of reach for 30 s ends that
   * with `UnavailableError`).
   */
  wait?: number | undefined
}

/** Who holds a resource. */
export type Holder = Readonly<HolderRecord>

/** One thing that is measured: a number or counts by size, for each set of labels. */
export type Metric = Readonly<MetricRecord>

/** What a backend can do and promise. */
export type Capabilities = Readonly<CapabilitiesRecord>

/**
 * Makes locks on one backend. Opens connections with the first use, and keeps no process alive while idle.
 *
 * Emits what happens to its leases: `acquired`, `contended`, `extended`, `extension_failed`, `lost`, `released`, and `event` for all
 * of them, in batches within some 10 ms. Nobody who acquires or releases waits for a listener.
 */
export class LockManager extends LockEvents {
  readonly #id: number

  /** @internal */
  constructor(id: number) {
    super(id)
    this.#id = id
    unused.register(this, id)
  }

  /**
   * Acquires `resource`, waiting as `options` say. Locks are not re-entrant: a holder that asks again waits.
   *
   * Rejects with `AcquireTimeoutError` if it stayed in use, `ConflictError` if it is in use as something else,
   * `UnavailableError` if the backend was out of reach, `AuthError`, `InvalidArgumentError`, `ClosedError`, or the
   * reason of `options.signal`.
   */
  acquire(resource: string, options?: AcquireOptions): Promise<Lease> {
    return acquire(this.#id, Target.Exclusive, resource, options, 0) as Promise<Lease>
  }

  /**
   * Acquires all of `resources`, or none: whoever asks for some of them in another order does not bring about a deadlock. The
   * backend must be able to (`capabilities.several`). Rejects as `acquire` does.
   */
  acquireAll(resources: readonly string[], options?: AcquireOptions): Promise<Lease> {
    return acquire(this.#id, Target.Several, resources, options, 0) as Promise<Lease>
  }

  /** As `acquireAll`, but tries once; `null` if somebody else holds some of them. */
  tryAcquireAll(resources: readonly string[], options?: TryOptions): Promise<Lease | null> {
    return acquire(this.#id, Target.Several, resources, options, How.Once)
  }

  /** @internal Acquires one resource as `mode` says. */
  acquireAs(mode: number, resource: string, options: AcquireOptions | undefined, how: number): Promise<Lease | null> {
    return acquire(this.#id, mode, resource, options, how)
  }

  /**
   * @internal For who tries again by itself, `every` so often: waits for a holder that long, but for no server. What `stays` is left to its
   * ttl by the end of the process or of the worker, and is the `keeper`'s, if there is one.
   */
  acquireRetried(
    resources: string | readonly string[],
    ttl: number,
    how: number,
    keeper: Keeper | undefined,
    { wait, every }: { wait: number; every: number },
    signal: AbortSignal,
  ): Promise<Lease> {
    const isOne = typeof resources === 'string'
    const target = isOne ? resources : arg.names('resources', resources)
    const mode = isOne ? Target.Exclusive : Target.Several
    const convert = (reply: Reply): Lease => {
      const lease = leaseOf(reply, target) as Lease
      keeper?.keep(lease)
      return lease
    }
    const started = native.acquire(this.#id, target, mode, ttl, wait, how, undefined, undefined, every)
    return run(started, convert, wait > 0 ? signal : undefined)
  }

  /** @internal Makes what `owner` holds, whoever that is, last for another `ttl`, if it holds all; resolves to whether it does. */
  extendFor(resources: readonly string[], owner: string, ttl: number): Promise<boolean> {
    return run(native.extendFor(this.#id, resources, arg.string('value', owner), ttl), was)
  }

  /** Tries once; `null` if somebody else holds it. Rejects as `acquire` does, but for `AcquireTimeoutError`. */
  tryAcquire(resource: string, options?: TryOptions): Promise<Lease | null> {
    return acquire(this.#id, Target.Exclusive, resource, options, How.Once)
  }

  /** `resource`, to be held together with others that hold it shared. The backend must be able to (`capabilities.shared`). */
  shared(resource: string): Lock {
    return new Lock(this, resource, Target.Shared)
  }

  /**
   * A semaphore: at most `permits` hold `resource` at a time. All its users must name the same number. The backend must be able
   * to (`capabilities.semaphore`).
   */
  semaphore(resource: string, permits: number): Lock {
    arg.whole('permits', permits, 65_535)
    return new Lock(this, resource, permits)
  }

  /**
   * Runs `fn` under the lock of `resource`, and releases it.
   *
   * Rejects as `acquire` does, or with what `fn` threw, whatever becomes of the release; if `fn` succeeded but the
   * lease was lost meanwhile, with `LockLostError`.
   */
  using<T>(resource: string, fn: (lease: Lease) => T | PromiseLike<T>): Promise<T>
  using<T>(resource: string, options: AcquireOptions | undefined, fn: (lease: Lease) => T | PromiseLike<T>): Promise<T>
  async using<T>(
    resource: string,
    options: AcquireOptions | undefined | ((lease: Lease) => T | PromiseLike<T>),
    fn?: (lease: Lease) => T | PromiseLike<T>,
  ): Promise<T> {
    return under((given) => this.acquire(resource, given), options, fn)
  }

  /** As `using`, under the locks of all of `resources`: see `acquireAll`. */
  usingAll<T>(resources: readonly string[], fn: (lease: Lease) => T | PromiseLike<T>): Promise<T>
  usingAll<T>(
    resources: readonly string[],
    options: AcquireOptions | undefined,
    fn: (lease: Lease) => T | PromiseLike<T>,
  ): Promise<T>
  async usingAll<T>(
    resources: readonly string[],
    options: AcquireOptions | undefined | ((lease: Lease) => T | PromiseLike<T>),
    fn?: (lease: Lease) => T | PromiseLike<T>,
  ): Promise<T> {
    return under((given) => this.acquireAll(resources, given), options, fn)
  }

  /** Who holds `resource`, or `null` if it is free. */
  inspect(resource: string): Promise<Holder | null> {
    try {
      arg.string('resource', resource)
    } catch (error) {
      return Promise.reject(error as Error)
    }
    return run(native.inspect(this.#id, resource), (reply) => {
      const inspected = check(reply, resource)
      return inspected[1] === Kind.Inspected ? inspected[2] : null
    })
  }

  /**
   * Who holds the resources whose names match `pattern`: an entry for each holder, in the order of the names, `limit` (1 to 100,000)
   * of them at most. In a pattern `*` stands for any text, `?` for any one character, and a backslash takes the next as it is.
   *
   * On Redis it goes through all keys of the server, step by step without holding it up. It finds what this library holds; a lock
   * of another library is found by its full name alone. The backend must be able to (`capabilities.listing`).
   */
  list(pattern = '*', limit = 1000): Promise<Holder[]> {
    try {
      arg.string('pattern', pattern)
      arg.whole('limit', limit, 100_000)
    } catch (error) {
      return Promise.reject(error as Error)
    }
    return run(native.list(this.#id, pattern, limit), (reply) => {
      const listed = check(reply)
      return listed[1] === Kind.Listed ? listed[2] : []
    })
  }

  /**
   * Frees `resource` though somebody holds it, if that is still the holder that was `seen`: the fencing token, or the owner, that
   * `inspect` or `list` showed. Resolves to whether it was.
   *
   * The holder is told that its lease is lost no later than at its next renewal. Until then it may go on: break a lock when its
   * holder is dead or hung, or where the fencing token is checked. The backend must be able to (`capabilities.breaking`).
   */
  break(resource: string, seen: bigint | { owner: string }): Promise<boolean> {
    let started: Started
    try {
      arg.string('resource', resource)
      started =
        typeof seen === 'bigint'
          ? native.breakLock(this.#id, resource, seen)
          : native.breakLock(
              this.#id,
              resource,
              undefined,
              arg.string('owner', arg.object('seen', 'a bigint or { owner }', seen).owner),
            )
    } catch (error) {
      return Promise.reject(error as Error)
    }
    return run(started, (reply) => was(reply, resource))
  }

  /**
   * What was done through this manager since it was made. Asks no server; also works when it is closed. For Prometheus there are
   * `polylock/prometheus` and `metricsText`.
   */
  metrics(): Metric[] {
    const metrics = native.metrics(this.#id)
    if (metrics[1] === Kind.Failed) throw errorFrom((metrics as FailedReply)[2])
    return metrics as MetricRecord[]
  }

  /** The same in the text format of Prometheus (`text/plain; version=0.0.4`). */
  metricsText(): string {
    const text = native.metricsText(this.#id)
    if (typeof text !== 'string') throw errorFrom(text[2])
    return text
  }

  /** How many wait for `resource` through this manager. */
  waiting(resource: string): number {
    const reply = check(native.waiting(this.#id, arg.string('resource', resource)), resource)
    return reply[1] === Kind.Number ? reply[2] : 0
  }

  /** What the backend can do and promise. */
  get capabilities(): Capabilities {
    const capabilities = native.capabilities(this.#id)
    if (Array.isArray(capabilities)) throw errorFrom(capabilities[2])
    return capabilities
  }

  /**
   * Ends it: waiters get `ClosedError`, leases are released, connections let go. Resolves when that is done; a server
   * that does not answer is given up when its leases must have expired. Closing twice is harmless.
   */
  close(): Promise<void> {
    return run(native.close(this.#id), (reply) => {
      check(reply)
    })
  }

  /** Closes it, for `await using`. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }
}

/** A way to hold a resource: shared, or as one permit of a semaphore. */
export class Lock {
  /** What is locked. */
  readonly resource: string
  /** Not its number alone: a manager that nobody has is let go of. */
  readonly #manager: LockManager
  readonly #mode: number

  /** @internal */
  constructor(manager: LockManager, resource: string, mode: number) {
    this.resource = arg.string('resource', resource)
    this.#manager = manager
    this.#mode = mode
  }

  /** As `LockManager.acquire`. */
  acquire(options?: AcquireOptions): Promise<Lease> {
    return this.#manager.acquireAs(this.#mode, this.resource, options, 0) as Promise<Lease>
  }

  /** As `LockManager.tryAcquire`. */
  tryAcquire(options?: TryOptions): Promise<Lease | null> {
    return this.#manager.acquireAs(this.#mode, this.resource, options, How.Once)
  }

  /** As `LockManager.using`. */
  using<T>(fn: (lease: Lease) => T | PromiseLike<T>): Promise<T>
  using<T>(options: AcquireOptions | undefined, fn: (lease: Lease) => T | PromiseLike<T>): Promise<T>
  async using<T>(
    options: AcquireOptions | undefined | ((lease: Lease) => T | PromiseLike<T>),
    fn?: (lease: Lease) => T | PromiseLike<T>,
  ): Promise<T> {
    return under((given) => this.acquire(given), options, fn)
  }
}

/** How to hold, as the addon takes it; any other number is that of the permits. */
const enum Target {
  Exclusive = 0,
  Shared = -1,
  Several = -2,
}

const TRY_OPTIONS = ['ttl', 'autoExtend', 'maxHold', 'label', 'fair', 'signal'] as const
const ACQUIRE_OPTIONS = ['wait', ...TRY_OPTIONS] as const
const CONNECT_OPTIONS = ['prefix', 'driftFactor', 'nodeTimeout'] as const

/** `how`: bits beside those of the options. */
function acquire(
  manager: number,
  mode: number,
  resource: string | readonly string[],
  options: AcquireOptions | undefined,
  how: number,
): Promise<Lease | null> {
  let started: Started
  let signal: AbortSignal | undefined
  let target: string | readonly string[]
  try {
    const {
      ttl = 30_000,
      wait = Infinity,
      autoExtend = true,
      maxHold,
      label,
      fair = false,
      signal: given,
    } = arg.options(options, how === How.Once ? TRY_OPTIONS : ACQUIRE_OPTIONS)
    signal = arg.optionalSignal('signal', given)
    target = mode === Target.Several ? arg.names('resources', resource) : arg.string('resource', resource)
    arg.number('ttl', ttl)
    arg.number('wait', wait)
    if (arg.boolean('autoExtend', autoExtend)) how |= How.AutoExtend
    if (arg.boolean('fair', fair)) how |= How.Fair
    arg.optionalNumber('maxHold', maxHold)
    arg.optionalString('label', label)
    if (signal?.aborted === true) throw arg.reasonOf(signal)
    started = native.acquire(manager, target, mode, ttl, wait, how, maxHold === Infinity ? undefined : maxHold, label)
  } catch (error) {
    return Promise.reject(error as Error)
  }
  return run(started, (reply) => leaseOf(reply, target), signal)
}

/** The lease of `target` that was granted; `null` if somebody else holds it. */
function leaseOf(reply: Reply, target: string | readonly string[]): Lease | null {
  const granted = check(reply, (typeof target === 'string' ? target : target.join(', ')) || undefined)
  return granted[1] === Kind.Leased ? new Lease(target, granted[0], granted[2], granted[3]) : null
}

/** Whether what was asked for was so. */
function was(reply: Reply, resource?: string): boolean {
  const checked = check(reply, resource)
  return checked[1] === Kind.Was && checked[2]
}

/** Runs a body under a lease. */
async function under<T>(
  acquire: (options: AcquireOptions | undefined) => Promise<Lease>,
  options: AcquireOptions | undefined | ((lease: Lease) => T | PromiseLike<T>),
  fn: ((lease: Lease) => T | PromiseLike<T>) | undefined,
): Promise<T> {
  const body = typeof options === 'function' ? options : arg.fn('fn', fn)
  const lease = await acquire(typeof options === 'function' ? undefined : options)
  // A body that waits for nothing but its lease's signal is referenced by that alone: both could be collected.
  lease.use()
  let result: T
  try {
    result = await body(lease)
  } catch (error) {
    await lease.end().catch(() => undefined)
    throw error
  }
  const ended = await lease.end()
  // Not held: it was taken, and nobody had noticed.
  if (lease.loss !== null || ended === 'not_held') throw lease.lostError()
  return result
}

/** A manager that nobody has any more: its leases stay. */
const unused = new FinalizationRegistry<number>((id) => native.forgetManager(id))

/**
 * Makes a manager of the locks at `url`, or at several Redis URLs (Redlock). Synchronous and without I/O: a server that does not
 * answer shows with the first use.
 *
 * | URL | locks are kept |
 * |---|---|
 * | `memory:`, `memory:NAME` | in this process; NAME shares a store among managers |
 * | `file:///var/lock/app` | in files of that directory: among the processes of this host |
 * | `redis://[user:password@]host[:port][/database]`, `rediss://…`, `redis+unix:///path` | in one Redis or Valkey |
 * | `redis+sentinel://h1,h2/primary-name`, `redis+cluster://h1,h2` | in a Redis that is kept by sentinels, in a cluster |
 * | `postgres://user:password@host/database`, with `?mode=session` for advisory locks | in PostgreSQL |
 * | `zookeeper://h1,h2,h3/path` | in ZooKeeper |
 *
 * Throws `InvalidArgumentError` naming `url` or the option, `UnsupportedError`.
 */
export function connect(url: string | readonly string[], options?: ConnectOptions): LockManager {
  const { prefix, driftFactor, nodeTimeout } = arg.options(options, CONNECT_OPTIONS)
  const urls = arg.urls(url)
  arg.optionalString('prefix', prefix)
  arg.optionalNumber('driftFactor', driftFactor)
  arg.optionalNumber('nodeTimeout', nodeTimeout)
  open()
  const reply = check(native.connect(urls, prefix, driftFactor, nodeTimeout))
  return new LockManager(reply[1] === Kind.Number ? reply[2] : 0)
}
