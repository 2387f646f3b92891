#!/usr/bin/env node
/** The command line, installed as `polylock`. */

import { native } from './native.js'

// Node's own handlers of these would end the process in the place of what they are passed on to: with its last listener
// gone, a signal has no handler at all.
for (const signal of ['SIGINT', 'SIGTERM', 'SIGUSR1'] as const) {
  const listener = () => undefined
  process.on(signal, listener).off(signal, listener)
}
process.exit(native.commandLine(['polylock', ...process.argv.slice(2)]))
