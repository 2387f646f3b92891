// OpenTelemetry: metrics and spans, by the real SDK.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'

import { context, trace } from '@opentelemetry/api'
import { AsyncLocalStorageContextManager } from '@opentelemetry/context-async-hooks'
import { MeterProvider, MetricReader } from '@opentelemetry/sdk-metrics'
import { BasicTracerProvider, InMemorySpanExporter, SimpleSpanProcessor } from '@opentelemetry/sdk-trace-base'
import { AcquireTimeoutError, connect, LockLostError } from 'polylock'
import { observe, traced } from 'polylock/opentelemetry'

import { backends, shared, unique } from './support.mjs'

class Reader extends MetricReader {
  onShutdown() {}
  onForceFlush() {}

  async points(name) {
    const { resourceMetrics, errors } = await this.collect()
    assert.deepEqual(errors, [])
    const metrics = resourceMetrics.scopeMetrics.flatMap((scope) => scope.metrics)
    return metrics.find(({ descriptor }) => descriptor.name === name)?.dataPoints ?? []
  }

  async value(name, labels = {}) {
    const fits = ({ attributes }) => Object.entries(labels).every(([label, value]) => attributes[label] === value)
    return (await this.points(name)).find(fits)?.value
  }
}

function metered() {
  const reader = new Reader()
  return { reader, meter: new MeterProvider({ readers: [reader] }).getMeter('polylock') }
}

test('metrics are read when the reader collects', async () => {
  const { reader, meter } = metered()
  const locks = connect('memory:')
  const end = observe(meter, locks)
  const lease = await locks.acquire('r')
  assert.equal(await reader.value('polylock.held', { system: 'memory' }), 1)
  await lease.release()
  await (await locks.acquire('r')).release()
  assert.equal(await reader.value('polylock.held'), 0)
  assert.equal(await reader.value('polylock.attempts', { answer: 'granted' }), 2)
  const acquired = { outcome: 'acquired' }
  assert.equal(await reader.value('polylock.acquire.duration.count', acquired), 2)
  assert.ok((await reader.value('polylock.acquire.duration.sum', acquired)) > 0)
  assert.equal(await reader.value('polylock.acquire.duration.bucket', { ...acquired, le: '+Inf' }), 2)
  end()
  await locks.acquire('r')
  assert.notEqual(await reader.value('polylock.held'), 1)
  await locks.close()
})

test('several managers are told apart', async () => {
  const { reader, meter } = metered()
  const orders = connect('memory:')
  const mail = connect('memory:')
  observe(meter, { orders, mail })
  await orders.acquire('r')
  assert.equal(await reader.value('polylock.held', { manager: 'orders' }), 1)
  assert.equal(await reader.value('polylock.held', { manager: 'mail' }), 0)
  await orders.close()
  assert.equal(await reader.value('polylock.held', { manager: 'orders' }), 0)
  assert.throws(() => observe(meter, {}), TypeError)
})

function traces() {
  context.setGlobalContextManager(new AsyncLocalStorageContextManager())
  const exporter = new InMemorySpanExporter()
  const provider = new BasicTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] })
  const take = () => {
    const spans = exporter.getFinishedSpans()
    exporter.reset()
    return spans
  }
  return { tracer: provider.getTracer('test'), take }
}

const { tracer, take } = traces()

for (const { name, url } of backends) {
  test(`spans around acquire and hold on ${name}`, async () => {
    const locks = connect(shared(url))
    const resource = unique('traced')
    const token = await tracer.startActiveSpan('request', async (request) => {
      const done = await traced(tracer, locks).using(resource, { ttl: 10_000 }, async (lease) => {
        tracer.startSpan('work').end()
        return lease.fencingToken
      })
      assert.equal(trace.getActiveSpan(), request)
      request.end()
      return done
    })
    const [acquire, work, hold, request] = take()
    assert.deepEqual([acquire.name, hold.name], ['polylock.acquire', 'polylock.hold'])
    for (const span of [acquire, hold]) {
      assert.equal(span.parentSpanContext.spanId, request.spanContext().spanId)
      assert.deepEqual(span.attributes, { 'polylock.resource': resource, 'polylock.fencing_token': Number(token) })
    }
    assert.equal(work.parentSpanContext.spanId, hold.spanContext().spanId)
    if (locks.capabilities.semaphore) {
      assert.equal(await traced(tracer, locks.semaphore(unique('permits'), 2)).using(() => 7), 7)
      assert.equal(take().length, 2)
    }
    await locks.close()
  })
}

test('errors are in the span that they end', async () => {
  const locks = connect('memory:')
  const spans = traced(tracer, locks)
  const held = await locks.acquire('r')
  await assert.rejects(
    spans.using('r', { wait: 0 }, () => assert.fail()),
    AcquireTimeoutError,
  )
  await held.release()
  const [acquire, ...more] = take()
  assert.deepEqual([acquire.name, acquire.status.code, more], ['polylock.acquire', 2, []])

  const lost = spans.using('r', { ttl: 50, autoExtend: false }, async ({ signal }) => {
    while (!signal.aborted) await sleep(5)
  })
  await assert.rejects(lost, LockLostError)
  const hold = take().at(-1)
  assert.deepEqual([hold.name, hold.status.code, hold.attributes['polylock.loss']], ['polylock.hold', 2, 'expired'])

  const thrown = new Error('oops')
  await assert.rejects(
    spans.using('r', () => {
      throw thrown
    }),
    thrown,
  )
  assert.equal(take().at(-1).status.message, 'oops')
  await assert.rejects(spans.using('r'), TypeError)
  assert.deepEqual(take(), [])
  assert.equal(await locks.inspect('r'), null)
  await locks.close()
})
