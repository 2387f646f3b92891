/**
 * Metrics and spans for OpenTelemetry.
 *
 *     import { metrics, trace } from '@opentelemetry/api'
 *     import { observe, traced } from 'polylock/opentelemetry'
 *
 *     observe(metrics.getMeter('polylock'), locks)
 *     await traced(trace.getTracer('polylock'), locks).using('invoice:42', async (lease) => { ... })
 *
 * @packageDocumentation
 */

import type { Lease } from './lease.js'
import type { AcquireOptions, Lock, LockManager } from './manager.js'
import type { MetricRecord, PointRecord } from './native.js'

type Attributes = Record<string, string | number>

/** What is needed of a meter of `@opentelemetry/api` 1. */
export interface Meter {
  createObservableCounter(name: string, options?: { description?: string; unit?: string }): unknown
  createObservableGauge(name: string, options?: { description?: string; unit?: string }): unknown
  addBatchObservableCallback(callback: never, observables: never): void
  removeBatchObservableCallback(callback: never, observables: never): void
}

interface Result {
  observe(instrument: unknown, value: number, attributes: Attributes): void
}

/** What is needed of a span of `@opentelemetry/api` 1. */
interface Span {
  setAttribute(name: string, value: string | number | string[]): unknown
  setStatus(status: { code: number; message?: string }): unknown
  recordException(error: Error | string): void
  end(): void
}

/** What is needed of a tracer of `@opentelemetry/api` 1. */
export interface Tracer {
  startSpan(name: string, options?: { kind?: number }): Span
  startActiveSpan(name: string, fn: never): unknown
}

/** `SpanKind.CLIENT` and `SpanStatusCode.ERROR`: numbers that stay, and this needs no package for them. */
const CLIENT = 2
const ERROR = 2

/**
 * Has the metrics of a manager, or of several by name, read whenever a reader of the SDK collects. Several are told apart by the
 * attribute `manager`. Returns a function that ends it.
 *
 * Counters and gauges have the names of `metrics()`. What is counted by size there is given as three counters, since OpenTelemetry has
 * no histogram that is observed: `NAME.count`, `NAME.sum` (in seconds) and `NAME.bucket`, whose attribute `le` is the upper bound, as
 * Prometheus has it.
 */
export function observe(meter: Meter, locks: LockManager | Readonly<Record<string, LockManager>>): () => void {
  const one = typeof locks.metrics === 'function'
  const managers = (one ? [['', locks]] : Object.entries(locks)) as [string, LockManager][]
  const first = managers[0]
  if (first === undefined) throw new TypeError('locks must be a manager, or several by name')
  const instruments = new Map<string, unknown>()
  for (const metric of first[1].metrics()) create(meter, metric, instruments)

  const callback = (result: Result): void => {
    for (const [manager, each] of managers) {
      const more = manager === '' ? {} : { manager }
      for (const { name, points } of each.metrics()) {
        for (const point of points) {
          for (const [suffix, value, attributes] of values(point)) {
            result.observe(instruments.get(name + suffix), value, { ...attributes, ...more })
          }
        }
      }
    }
  }
  const observables = [...instruments.values()] as never
  meter.addBatchObservableCallback(callback as never, observables)
  return () => meter.removeBatchObservableCallback(callback as never, observables)
}

function create(meter: Meter, { name, kind, unit, help: description }: MetricRecord, into: Map<string, unknown>): void {
  if (kind === 'histogram') {
    for (const suffix of ['.count', '.sum', '.bucket']) {
      const options = { description, unit: suffix === '.sum' ? unit : '1' }
      into.set(name + suffix, meter.createObservableCounter(name + suffix, options))
    }
  } else {
    const options = { description, unit: unit === '' ? '1' : unit }
    into.set(
      name,
      kind === 'counter' ? meter.createObservableCounter(name, options) : meter.createObservableGauge(name, options),
    )
  }
}

/** What a point gives: the end of the instrument's name, value, attributes. */
function* values({ labels, value, histogram }: PointRecord): Iterable<[string, number, Attributes]> {
  if (histogram === undefined) {
    yield ['', value ?? 0, labels]
    return
  }
  yield ['.count', histogram.count, labels]
  yield ['.sum', histogram.sum, labels]
  let soFar = 0
  for (const [index, count] of histogram.counts.entries()) {
    soFar += count
    yield ['.bucket', soFar, { ...labels, le: String(histogram.bounds[index] ?? '+Inf') }]
  }
}

/** `using` of a manager, or of what its `shared` and `semaphore` give, with spans. */
export interface Traced<Arguments extends unknown[]> {
  /** As `using` there. */
  using<T>(...words: [...Arguments, (lease: Lease) => T | PromiseLike<T>]): Promise<T>
  /** As `using` there, with options. */
  using<T>(...words: [...Arguments, AcquireOptions, (lease: Lease) => T | PromiseLike<T>]): Promise<T>
}

/**
 * `locks` with a `using` that makes two spans: `polylock.acquire`, and then `polylock.hold` around the body, where it is the active one. Both
 * are children of the active span. An error, also `LockLostError` at the end, is in the span that it ends.
 */
export function traced(tracer: Tracer, locks: LockManager): Traced<[resource: string]>
export function traced(tracer: Tracer, locks: Lock): Traced<[]>
export function traced(tracer: Tracer, locks: LockManager | Lock): Traced<unknown[]> {
  return {
    using: async <T>(...words: unknown[]): Promise<T> => {
      const body = words.pop()
      if (typeof body !== 'function') throw new TypeError('fn must be a function')
      let span = tracer.startSpan('polylock.acquire', { kind: CLIENT })
      let lease: Lease | undefined
      const run = (given: Lease): unknown => {
        lease = given
        describe(span, given)
        span.end()
        return tracer.startActiveSpan('polylock.hold', ((holding: Span) => {
          span = holding
          describe(span, given)
          return body(given) as unknown
        }) as never)
      }
      try {
        const using = locks.using as (...words: unknown[]) => Promise<T>
        return await using.call(locks, ...words, run)
      } catch (error) {
        span.recordException(error as Error)
        span.setStatus({ code: ERROR, message: String((error as Error | null)?.message ?? error) })
        throw error
      } finally {
        if (lease?.loss != null) span.setAttribute('polylock.loss', lease.loss)
        span.end()
      }
    },
  }
}

function describe(span: Span, { resource, resources, fencingToken }: Lease): void {
  span.setAttribute('polylock.resource', resources.length === 1 ? resource : [...resources])
  span.setAttribute('polylock.fencing_token', Number(fencingToken))
}
