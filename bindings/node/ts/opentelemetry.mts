// The same module for `import`: see index.mts.

export { observe, traced } from './opentelemetry.js'
export type { Meter, Traced, Tracer } from './opentelemetry.js'
