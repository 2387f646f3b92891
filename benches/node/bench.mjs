// polylock beside the usual libraries of Node: `bench.mjs URL[,URL…] [PART…]`. With several URLs (the first is the one node) also on
// Redlock over the others. Prints a line of JSON per comparison; with --table a table for people instead.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import process from 'node:process'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'

import { open } from './contenders.mjs'
import { Floor } from './floor.mjs'
import { handOver, latency, mean, median, throughput } from './measure.mjs'

const { values: flags, positionals } = parseArgs({
  options: { table: { type: 'boolean' } },
  allowPositionals: true,
})
const [list, ...asked] = positionals
const [one, ...five] = list.split(',').map((url) => url.replace(/\/$/, ''))
const places = [{ nodes: '1 node', backend: 'redis', urls: [one] }]
if (five.length > 0)
  places.push({
    nodes: `${five.length} nodes`,
    backend: 'redlock',
    urls: five,
  })

const row = (what, unit, backend, area, values) => {
  if (flags.table) return table(what, unit, values)
  const [[, ours], ...others] = values
  for (const [peer_name, peer] of others) {
    console.log(
      JSON.stringify({
        language: 'node',
        area,
        backend,
        what,
        unit,
        ours,
        peer,
        peer_name,
      }),
    )
  }
}

function table(what, unit, values) {
  const cells = values.map(([name, value]) => `${name} ${value >= 1000 ? Math.round(value) : value.toFixed(1)}`)
  console.log(`${`${what}, ${unit}`.padEnd(56)} ${cells.join(' | ')}`)
}

const named = (contenders, values) => contenders.map(({ name }, index) => [name, values[index]])

async function uncontended({ urls, backend, nodes }, how = '', options = {}) {
  const contenders = open(urls)
  const raw = urls.length === 1 ? await Floor.open(urls[0], 'bench:floor') : null
  if (raw !== null)
    contenders.push({
      name: 'raw socket',
      pair: () => raw.pair(),
      close: () => raw.close(),
    })
  const samples = await latency(contenders, options)
  row(`acquire + release, ${nodes}${how}, median`, 'us', backend, 'uncontended', named(contenders, samples.map(median)))
  row(`acquire + release, ${nodes}${how}, mean`, 'us', backend, 'uncontended', named(contenders, samples.map(mean)))
  await Promise.all(contenders.map(({ close }) => close()))
}

async function crowded({ urls, backend, nodes }, how = '') {
  const contenders = open(urls)
  const results = await throughput(contenders, {
    pairs: urls.length === 1 ? 25 : 8,
  })
  const of = (key) =>
    named(
      contenders,
      results.map((result) => median(result[key])),
    )
  row(`64 in flight, ${nodes}${how}`, 'pairs/s', backend, 'throughput', of('rate'))
  row(`CPU a pair, ${nodes}${how}`, 'us', backend, 'cpu', of('cpu'))
  row(`event loop a pair, ${nodes}${how}`, 'us', backend, 'event loop', of('loop'))
  await Promise.all(contenders.map(({ close }) => close()))
}

async function lines({ urls, backend, nodes }) {
  const contenders = open(urls)
  const samples = await handOver(contenders, {})
  row(`hand-over, 10 waiters, ${nodes}, median`, 'us', backend, 'hand-over', named(contenders, samples.map(median)))
  row(`hand-over, 10 waiters, ${nodes}, mean`, 'us', backend, 'hand-over', named(contenders, samples.map(mean)))
  await Promise.all(contenders.map(({ close }) => close()))
}

/** The same places behind a network of half a millisecond. */
async function delayed(check, place) {
  const script = new URL('delay_proxy.py', import.meta.url).pathname
  const addresses = place.urls.map((url) => new URL(url).host)
  const proxy = spawn(script, ['0.5', ...addresses], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const ports = []
  for await (const port of createInterface(proxy.stdout)) {
    if (ports.push(port) === addresses.length) break
  }
  await check({ ...place, urls: ports.map((port) => `redis://127.0.0.1:${port}`) }, ', 0.5 ms away')
  proxy.stdin.end()
  await once(proxy, 'exit')
}

/** Two of the nodes answer nobody for a while; whoever waits for them is given up after 3 s. */
async function silent(place) {
  const contenders = open(place.urls)
  await latency(contenders, { rounds: 1, pairs: 10, warmUp: 0 })
  await Promise.all(place.urls.slice(0, 2).map(async (url) => (await Floor.open(url, 'bench:pause')).silence(60_000)))
  const limit = 3_000
  const samples = await latency(contenders, { rounds: 1, pairs: 2, warmUp: 0, limit })
  // Who does not wait for those nodes is measured further, without the pauses that the others make.
  const isQuick = (_, index) => Math.max(...samples[index]) < limit * 1000
  const more = await latency(contenders.filter(isQuick), { rounds: 40, pairs: 10, warmUp: 1, limit })
  contenders.forEach((_, index) => isQuick(_, index) && samples[index].push(...more.shift()))
  row(
    'acquire + release, 2 of 5 nodes silent, median',
    'us',
    'redlock',
    'faults',
    named(contenders, samples.map(median)),
  )
  row('acquire + release, 2 of 5 nodes silent, mean', 'us', 'redlock', 'faults', named(contenders, samples.map(mean)))
  process.exit() // some would wait for those nodes
}

const parts = {
  uncontended,
  crowded,
  lines,
  delayed: (place) => delayed(uncontended, place),
  crowdedDelayed: (place) => delayed(crowded, place),
}
for (const [name, part] of Object.entries(parts)) {
  if (asked.length > 0 && !asked.includes(name)) continue
  for (const place of places) await part(place)
}
if (five.length > 0 && (asked.length === 0 || asked.includes('silent'))) await silent(places[1])
