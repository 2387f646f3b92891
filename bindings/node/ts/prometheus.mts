// The same module for `import`.

export { collect } from './prometheus.js'
export type { Registry } from './prometheus.js'
