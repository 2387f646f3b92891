// SQL for a transaction of the caller's, from node-postgres; and the examples of docs/postgres.md.

import assert from 'node:assert/strict'
import { readFileSync, writeFileSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { test } from 'node:test'

import pg from 'pg'
import { connect } from 'polylock'
import { CLAIM, CLAIM_TABLE, LEASE_TABLE, LOCK, SESSION_TABLE, TRY_LOCK, lockId } from 'polylock/postgres'

import { unique } from './support.mjs'

const url = process.env.POLYLOCK_TEST_POSTGRES
const needsServer = { skip: url === undefined && 'POLYLOCK_TEST_POSTGRES says where a server is' }
const read = (path) => readFileSync(new URL(`../../../${path}`, import.meta.url), 'utf8')

test('ids are golden', () => {
  const lines = read('tests/golden/advisory_lock_ids.tsv')
    .split('\n')
    .filter((line) => line !== '' && !line.startsWith('#'))
  assert.ok(lines.length > 1)
  for (const line of lines) {
    const [id, name] = line.split('\t')
    assert.equal(lockId(name), BigInt(id), name)
  }
  assert.equal(createRequire(import.meta.url)('polylock/postgres').lockId, lockId)
})

test("the statements are the engine's", () => {
  for (const [file, ours] of [
    ['transaction/claim.sql', CLAIM],
    ['transaction/claim_table.sql', CLAIM_TABLE],
    ['lease/table.sql', LEASE_TABLE],
    ['session/table.sql', SESSION_TABLE],
  ]) {
    const engines = read(`core/src/backend/postgres/sql/${file}`)
    assert.equal(ours, engines.replace(/^ *--.*\n| +--.*/gm, ''))
  }
})

async function withClient(use) {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    return await use(client)
  } finally {
    await client.end()
  }
}

test('a transaction and a session exclude each other', needsServer, async () => {
  const name = unique('transaction')
  const locks = connect(`${url}?mode=session`)
  await withClient(async (client) => {
    await client.query('BEGIN')
    await client.query(LOCK, [lockId(name)])
    assert.equal(await locks.tryAcquire(name, { ttl: 10_000 }), null)
    await client.query('COMMIT')
    await locks.using(name, { ttl: 10_000, wait: 10_000 }, async () => {
      const { rows } = await client.query(TRY_LOCK, [lockId(name)])
      assert.deepEqual(Object.values(rows[0]), [false])
    })
  })
  await locks.close()
})

test('a stale holder writes nothing', needsServer, async () => {
  const name = unique('claim')
  const locks = connect(url)
  await withClient(async (client) => {
    await client.query(CLAIM_TABLE)
    const tokens = []
    for (let round = 0; round < 2; round++) {
      await locks.using(name, { ttl: 10_000 }, async (lease) => void tokens.push(lease.fencingToken))
    }
    const [stale, fresh] = tokens
    await client.query(CLAIM, [name, fresh])
    await client.query('BEGIN')
    await assert.rejects(client.query(CLAIM, [name, stale]), {
      code: '22P02',
      message: new RegExp(`stale fencing token ${stale} of ${name}`),
    })
    const { command } = await client.query('COMMIT')
    assert.equal(command, 'ROLLBACK')
  })
  await locks.close()
})

test('the examples of the page run', needsServer, async () => {
  const examples = [...read('docs/postgres.md').matchAll(/```js\n(.*?)```/gs)].map((match) => match[1])
  assert.ok(examples.length > 0)
  for (const [index, example] of examples.entries()) {
    const file = new URL(`./page-${process.pid}-${index}.mjs`, import.meta.url)
    writeFileSync(file, example.replaceAll('postgres://user:password@host/database', url))
    try {
      await import(file)
    } finally {
      rmSync(file)
    }
  }
})
