import { metrics, trace } from '@opentelemetry/api'
import { connect } from 'polylock'
import { observe, traced } from 'polylock/opentelemetry'

const locks = connect('memory:')
const end: () => void = observe(metrics.getMeter('polylock'), locks)
const tracer = trace.getTracer('polylock')
const token: bigint = await traced(tracer, locks).using('r', { ttl: 5 }, (lease) => lease.fencingToken)
const text: string = await traced(tracer, locks.shared('r')).using(async () => 'done')
// @ts-expect-error a manager needs the name
void traced(tracer, locks).using(async () => 'done')

export { end, text, token }
