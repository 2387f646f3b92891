// The examples run, each in a process of its own, as their users would start them.

import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { connect } from 'polylock'

import { backends, redisUrl, shared } from './support.mjs'

const path = (name) => fileURLToPath(new URL(`../../../examples/node/${name}`, import.meta.url))
/** Node, or another that the environment names. */
const runtime = process.env.POLYLOCK_TEST_RUNTIME ?? process.execPath
const run = async (name, url) => (await promisify(execFile)(runtime, [path(name), url], { timeout: 60_000 })).stdout
const skip = redisUrl === undefined

for (const { name, url } of backends) {
  // A list of URLs is an array in a program, not one of its arguments.
  test(`the basic example runs on ${name}`, { skip: url.includes(',') }, async () => {
    assert.match(await run('basic.mjs', shared(url)), /^charging with token \d+\n$/)
  })
}

for (const [name, output] of Object.entries({
  'cron.mjs': /^cleaning up\n1 of 3\n$/,
  'from-redlock4.cjs': /^unlocked\n$/,
  'from-redlock5.mjs': /^both are ours\n$/,
  'route.mjs': /^200 {"cart":"c1","order":"\d+"}\n$/,
  'worker.mjs': /^job-1 for ann\njob-2 for ben\njob-3 for ann\njob-4 for ann\njob-5 for ben\n$/,
})) {
  test(`${name} runs`, { skip }, async () => assert.match(await run(name, redisUrl), output))
}

/** Runs `check` with an example that runs until it is told to stop, and with the lines that it writes. */
async function serving(name, check) {
  const child = spawn(runtime, [path(name), redisUrl], { stdio: ['ignore', 'pipe', 'inherit'] })
  const exit = once(child, 'exit')
  try {
    await check(createInterface(child.stdout)[Symbol.asyncIterator](), child)
    child.kill('SIGTERM')
    assert.deepEqual(await exit, [0, null])
  } finally {
    child.kill('SIGKILL')
  }
}

test('express.mjs charges once at a time', { skip }, () =>
  serving('express.mjs', async (lines) => {
    const { value: port } = await lines.next()
    const charge = () => fetch(`http://127.0.0.1:${port}/invoices/7/charge`, { method: 'POST' })
    const answers = await Promise.all([charge(), charge()])
    const tokens = await Promise.all(answers.map(async (answer) => BigInt((await answer.json()).token)))
    assert.notEqual(tokens[0], tokens[1])
    const locks = connect(redisUrl)
    await locks.using('invoice:7', async () => assert.equal((await charge()).status, 409))
    await locks.close()
  }),
)

test('fastify.mjs makes one report at a time', { skip }, () =>
  serving('fastify.mjs', async (lines) => {
    const { value: port } = await lines.next()
    const report = () => fetch(`http://127.0.0.1:${port}/reports/daily`, { method: 'POST' })
    const locks = connect(redisUrl)
    await locks.using('report:daily', async () => {
      const busy = await report()
      assert.equal(busy.status, 409)
      assert.ok((await busy.json()).runningSince > 0)
    })
    await locks.close()
    assert.equal((await report()).status, 200)
  }),
)

test('leader.mjs leads until it is stopped, and the next one takes over', { skip }, () =>
  serving('leader.mjs', async (lines, first) => {
    const leads = /^leads with (\d+)$/
    const one = leads.exec((await lines.next()).value)
    await serving('leader.mjs', async (others) => {
      first.kill('SIGTERM')
      assert.equal((await lines.next()).value, 'stopped')
      const two = leads.exec((await others.next()).value)
      assert.ok(BigInt(two[1]) > BigInt(one[1]))
    })
  }),
)
