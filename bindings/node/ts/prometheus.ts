/**
 * Metrics for `prom-client`.
 *
 *     import { register } from 'prom-client'
 *     import { collect } from 'polylock/prometheus'
 *
 *     collect(register, locks)
 *
 * @packageDocumentation
 */

import type { LockManager } from './manager.js'
import type { MetricRecord } from './native.js'

/** What is needed of a registry of `prom-client`, version 14 or later. */
export interface Registry {
  registerMetric(metric: never): void
  removeSingleMetric(name: string): void
}

interface Sample {
  value: number
  labels: Record<string, string | number>
  metricName?: string
}

interface Family {
  name: string
  help: string
  type: MetricRecord['kind']
  aggregator: 'sum' | 'min' | 'max'
  values: Sample[]
}

/**
 * Has `registry` give the metrics of a manager, or of several by name: these are told apart by the label `manager`. They are
 * read when the registry is. Returns a function that takes them out again.
 *
 * Throws as `registerMetric` does if they are there already.
 */
export function collect(registry: Registry, locks: LockManager | Readonly<Record<string, LockManager>>): () => void {
  const one = typeof locks.metrics === 'function'
  const managers = (one ? [['', locks]] : Object.entries(locks)) as [string, LockManager][]
  const first = managers[0]
  if (first === undefined) throw new TypeError('locks must be a manager, or several by name')
  const names = first[1].metrics().map((metric) => ({ name: prometheusName(metric), metric }))
  for (const { name, metric } of names) {
    const get = (): Family => {
      const values = managers.flatMap(([manager, each]) => {
        const same = each.metrics().find((other) => other.name === metric.name)
        return same === undefined ? [] : samples(name, same, manager === '' ? {} : { manager })
      })
      const aggregator = metric.name.endsWith('.min') || metric.name.endsWith('.up') ? 'min' : 'sum'
      return { name, help: metric.help, type: metric.kind, aggregator, values }
    }
    registry.registerMetric({ name, help: metric.help, type: metric.kind, get, reset: () => undefined } as never)
  }
  return () => {
    for (const { name } of names) registry.removeSingleMetric(name)
  }
}

function prometheusName({ name, unit, kind }: MetricRecord): string {
  const underscored = name.replaceAll('.', '_')
  if (kind === 'counter') return `${underscored}_total`
  if (unit === '') return underscored
  return underscored.endsWith('_min') ? `${underscored.slice(0, -4)}_seconds_min` : `${underscored}_seconds`
}

function samples(name: string, metric: MetricRecord, more: Record<string, string>): Sample[] {
  return metric.points.flatMap((point) => {
    const labels = { ...point.labels, ...more }
    const { histogram } = point
    if (histogram === undefined) return [{ value: point.value ?? 0, labels }]
    let soFar = 0
    const buckets: Sample[] = histogram.counts.map((count, index) => {
      soFar += count
      return {
        metricName: `${name}_bucket`,
        value: soFar,
        labels: { ...labels, le: histogram.bounds[index] ?? '+Inf' },
      }
    })
    return [
      ...buckets,
      { metricName: `${name}_sum`, value: histogram.sum, labels },
      { metricName: `${name}_count`, value: histogram.count, labels },
    ]
  })
}
