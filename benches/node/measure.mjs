// How contenders are measured. They take turns in short rounds, so that all see the same machine.
import { performance } from 'node:perf_hooks'
import process from 'node:process'
import { setTimeout as sleep } from 'node:timers/promises'

export const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]
export const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length

/** Times of one pair after the other, in microseconds. */
export async function latency(contenders, { rounds = 60, pairs = 25, warmUp = 5, limit = Infinity }) {
  const samples = contenders.map(() => [])
  for (let round = 0; round < warmUp + rounds; round++) {
    for (const [index, { name, pair }] of contenders.entries()) {
      for (let i = 0; i < pairs; i++) {
        const began = performance.now()
        await within(limit, pair(`bench:${name}:alone`))
        if (round >= warmUp) samples[index].push((performance.now() - began) * 1000)
      }
    }
  }
  return samples
}

/** What `promise` resolves to; gives up after `limit` milliseconds, which is then what it took. */
async function within(limit, promise) {
  if (limit === Infinity) return promise
  promise.catch(() => {})
  const over = new AbortController()
  await Promise.race([promise, sleep(limit, undefined, { signal: over.signal }).catch(() => {})])
  over.abort()
}

/** Pairs with many in flight: per contender a list of pairs per second, and of microseconds of CPU and of the event loop per pair. */
export async function throughput(contenders, { rounds = 9, inFlight = 64, pairs = 25 }) {
  const results = contenders.map(() => ({ rate: [], cpu: [], loop: [] }))
  for (let round = -1; round < rounds; round++) {
    for (const [index, { name, pair }] of contenders.entries()) {
      const worker = async (number) => {
        for (let i = 0; i < pairs; i++) await pair(`bench:${name}:${number}`)
      }
      const count = inFlight * pairs
      const [cpu, loop, began] = [process.cpuUsage(), performance.eventLoopUtilization(), performance.now()]
      await Promise.all(Array.from({ length: inFlight }, (_, number) => worker(number)))
      const took = performance.now() - began
      const [{ user, system }, { active }] = [process.cpuUsage(cpu), performance.eventLoopUtilization(loop)]
      if (round < 0) continue // warming up
      results[index].rate.push((count * 1000) / took)
      results[index].cpu.push((user + system) / count)
      results[index].loop.push((active * 1000) / count)
    }
  }
  return results
}

/** From one holder to the next with `waiters` of them, in microseconds; `hold` gives each waiter's own way to hold. */
export async function handOver(contenders, { rounds = 7, waiters = 10 }) {
  const samples = contenders.map(() => [])
  for (let round = 0; round < rounds; round++) {
    for (const [index, { name, hold }] of contenders.entries()) {
      const resource = `bench:${name}:line`
      const release = await hold(resource)
      const all = Array.from({ length: waiters }, async () => {
        const free = await hold(resource)
        await free()
      })
      await sleep(50) // they wait
      const began = performance.now()
      await release()
      await Promise.all(all)
      samples[index].push(((performance.now() - began) * 1000) / (waiters + 1))
    }
  }
  return samples
}
