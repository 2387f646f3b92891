// The examples run, each in a process of its own.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { backends, shared } from './support.mjs'

const basic = fileURLToPath(new URL('../../../examples/node/basic.mjs', import.meta.url))

for (const { name, url } of backends) {
  // A list of URLs is an array in a program, not one of its arguments.
  test(`the basic example runs on ${name}`, { skip: url.includes(',') }, async () => {
    const { stdout } = await promisify(execFile)(process.execPath, [basic, shared(url)], { timeout: 60_000 })
    assert.match(stdout, /^charging with token \d+\n$/)
  })
}
