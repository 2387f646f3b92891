// Memory stays flat: pairs, aborted acquires, managers.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'

import { connect } from 'polylock'

import { backends, shared, times, unique } from './support.mjs'

/** Bytes on the heap and in all, after everything that can go has gone. */
async function footprint() {
  for (let round = 0; round < 4; round++) {
    globalThis.gc()
    await turn()
  }
  const { heapUsed, rss } = process.memoryUsage()
  return { heapUsed, rss }
}

/** Fails if each of several runs of `work` leaves something behind: what leaks does, unlike caches, pools, and what is still being undone. */
async function staysFlat(count, work) {
  await work(count)
  let before = await footprint()
  const grown = []
  for (let run = 0; run < 5; run++) {
    await work(count)
    const after = await footprint()
    grown.push({ heap: after.heapUsed - before.heapUsed, rss: after.rss - before.rss })
    if (grown[run].heap < 512 * 1024 && grown[run].rss < 4 * 1024 * 1024) return
    before = after
  }
  assert.fail(`bytes more after each run: ${JSON.stringify(grown)}`)
}

const skip = globalThis.gc === undefined

for (const { name, url } of backends) {
  const usual = { memory: 50_000, file: 3_000, redis: 3_000 }[name] ?? 1_000
  const pairs = times('PAIRS', usual)
  const aborted = times('ABORTED', usual)

  test(`${pairs} pairs leave nothing in memory on ${name}`, { skip }, async () => {
    const locks = connect(shared(url))
    const resource = unique('pairs')
    await staysFlat(pairs, async (count) => {
      for (let index = 0; index < count; index++) await (await locks.acquire(resource)).release()
    })
    await locks.close()
  })

  test(`${aborted} aborted acquires leave nothing in memory on ${name}`, { skip }, async () => {
    const holding = connect(shared(url))
    const resource = unique('aborted')
    const holder = await holding.acquire(resource)
    await staysFlat(aborted, async (count) => {
      const locks = connect(shared(url))
      for (let index = 0; index < count; index++) {
        const controller = new AbortController()
        const pending = locks.acquire(resource, { signal: controller.signal })
        controller.abort('enough')
        await pending.catch(() => {})
      }
      await locks.close() // with what is still being undone
    })
    await holder.release()
    await holding.close()
  })
}

test('managers that nobody has any more are let go of', { skip }, async () => {
  await staysFlat(2_000, async (count) => {
    for (let index = 0; index < count; index++) {
      await (await connect('memory:').acquire('r')).release()
      if (index % 100 === 0) await turn()
    }
  })
})

test('a shared lock and a semaphore keep the manager that they came from', { skip }, async () => {
  const all = [connect('memory:').shared('r'), connect('memory:').semaphore('r', 2)]
  await footprint()
  for (const lock of all) await (await lock.acquire()).release()
})
