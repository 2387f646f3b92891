// The suite of redlock 4 itself, as its package ships it, run against polylock/redlock.

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { redisUrl } from './support.mjs'

const require = createRequire(import.meta.url)

test('the suite of redlock 4 passes', { skip: redisUrl === undefined }, () => {
  const directory = mkdtempSync(join(tmpdir(), 'polylock-redlock4-'))
  try {
    const port = Number(new URL(redisUrl).port)
    // Its clients connect to the usual port; ours are elsewhere, and so many versions of them under one roof need other names.
    const suite = readFileSync(join(require.resolve('redlock4/package.json'), '../test.js'), 'utf8')
      .replaceAll("require('redis').createClient(", `require('redis3').createClient(${port}, '127.0.0.1', `)
      .replaceAll("new (require('ioredis'))(", `new (require('ioredis4'))(${port}, '127.0.0.1', `)
      // Of a lock of 200 ms it means to extend what is left, which on a busy machine may be nothing.
      .replaceAll('Promise.delay(100)', 'Promise.delay(10)')
    assert.equal(suite.split(String(port)).length - 1, 6, 'the clients of the suite')
    writeFileSync(join(directory, 'test.js'), suite)
    writeFileSync(
      join(directory, 'redlock.js'),
      `module.exports = require(${JSON.stringify(require.resolve('polylock/redlock'))})`,
    )
    const packages = fileURLToPath(new URL('../node_modules', import.meta.url))
    const mocha = join(packages, 'mocha/bin/mocha.js')
    const { status, stdout, stderr } = spawnSync(process.execPath, [mocha, '--exit', join(directory, 'test.js')], {
      encoding: 'utf8',
      env: { ...process.env, NODE_PATH: packages },
      timeout: 120_000,
    })
    assert.equal(status, 0, `${stdout}\n${stderr}`)
    const passing = Number(/(\d+) passing/.exec(stdout)?.[1])
    assert.equal(passing, 224, stdout)
  } finally {
    rmSync(directory, { recursive: true })
  }
})
