// Where the event loop cannot watch descriptors, as Bun's: the same tests, woken by the engine's thread.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { redisUrl } from './support.mjs'

const path = (name) => fileURLToPath(new URL(name, import.meta.url))

test('the loop is woken where it cannot watch the engine', () => {
  // Of the backends, one without a server and one with.
  const urls = ['memory:', redisUrl ?? ''].join(' ').trim()
  const { NODE_TEST_CONTEXT: _, ...outside } = process.env
  const env = { ...outside, POLYLOCK_WITHOUT_LIBUV: '1', POLYLOCK_TEST_URLS: urls }
  const files = ['api', 'event_loop', 'process'].map((name) => path(`${name}.test.mjs`))
  const words = ['--expose-gc', '--test', '--test-reporter=tap', ...files]
  const { status, stdout, stderr } = spawnSync(process.execPath, words, { env, encoding: 'utf8', timeout: 300_000 })
  assert.equal(status, 0, stdout + stderr)
  const passed = Number(/^# pass (\d+)$/m.exec(stdout)?.[1])
  assert.ok(passed > 30, stdout)
})
