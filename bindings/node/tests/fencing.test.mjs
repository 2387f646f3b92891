// The claim rule in Redis, and the test for any store.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { test } from 'node:test'

import { connect } from 'polylock'
import { REDIS_CLAIM, checkRefusesZombies } from 'polylock/fencing'

import { redisUrl, unique, withRedis } from './support.mjs'

test("the script is the engine's", () => {
  assert.equal(REDIS_CLAIM, readFileSync(new URL('../../../core/src/fencing/claim.lua', import.meta.url), 'utf8'))
  assert.equal(createRequire(import.meta.url)('polylock/fencing').REDIS_CLAIM, REDIS_CLAIM)
})

test('data in Redis refuses zombies', { skip: redisUrl === undefined && 'there is no Redis' }, async () => {
  const resource = unique('zombie')
  const locks = connect(redisUrl)
  await withRedis(redisUrl, async (client) => {
    const write = async (token) => {
      assert.equal(await client.eval(REDIS_CLAIM, 1, `${resource}:data`, String(token), 'x'), 1)
    }
    await checkRefusesZombies(write, locks, resource)
    await client.del(`${resource}:data`)
  })
  await locks.close()
})

test('a store that takes everything, or nothing, is found out', async () => {
  await assert.rejects(
    checkRefusesZombies(() => {}),
    /was taken/,
  )
  await assert.rejects(
    checkRefusesZombies(() => Promise.reject(new Error('no'))),
    /^Error: no$/,
  )
})
