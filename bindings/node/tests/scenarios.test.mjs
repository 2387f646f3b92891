// Plays tests/scenarios/*.scenario through the public API; see the README there for the format.

import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { describe, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'

import { connect, PolylockError } from 'polylock'

const directory = new URL('../../../tests/scenarios/', import.meta.url)
const urls = (process.env.POLYLOCK_TEST_URLS ?? 'memory:').split(' ').filter((url) => url !== '')
const files = readdirSync(directory).filter((file) => file !== 'README.md')
/** No step takes longer, in milliseconds, or it hangs. */
const STEP_LIMIT = 60_000
let runs = 0

test('sees every scenario', () => {
  assert.ok(files.length >= 20, `only ${files.length} scenarios`)
  for (const file of files) assert.match(file, /\.scenario$/)
  assert.ok(urls.length >= 1)
})

// Three places at a time: the times of dozens that shared one loop would be a matter of luck.
describe('scenarios', { concurrency: 3 }, () => {
  for (const url of urls) {
    test(`on ${url.includes(',') ? 'Redlock' : url.split(':')[0]}`, async (context) => {
      for (const file of files) await context.test(file, (scenario) => play(read(file), url, scenario))
    })
  }
})

function read(file) {
  const lines = readFileSync(new URL(file, directory), 'utf8').split('\n')
  const steps = lines
    .map((text, index) => ({ text, number: index + 1 }))
    .filter(({ text }) => text !== '' && !text.startsWith('#'))
  const heads = steps.filter(({ text }) => /^(name|needs): /.test(text))
  assert.ok(heads[0].text.startsWith('name: ') && steps.length > heads.length, `${file} is no scenario`)
  const needs = heads.filter(({ text }) => text.startsWith('needs: ')).flatMap(({ text }) => text.split(' ').slice(1))
  return { file, needs, steps: steps.slice(heads.length) }
}

async function play({ file, needs, steps }, urlOfBackend, context) {
  const prefix = `node-${process.pid}-${++runs}`
  const url = urlOfBackend === 'memory:' ? `memory:${prefix}` : urlOfBackend
  if (needs.includes('break') && url.startsWith('memory:')) return context.skip('nobody can break a lock there')
  if (needs.includes('inspect') && !connect(url).capabilities.inspection) return context.skip('no inspection there')
  const actors = new Map()
  const run = { url, actors, real: (word) => specials[word] ?? `${prefix}:${word}` }
  for (const { text, number } of steps) {
    const place = `${file}:${number}: ${text} (on ${url})`
    const [action, expected = ''] = text.split(' => ')
    const outcome = await within(STEP_LIMIT, 'hangs', () =>
      step(action, expected, run).catch((error) => described(error, expected)),
    )
    assert.ok(fits(String(outcome), expected), `${place}: ${outcome}`)
  }
  await Promise.all([...actors.values()].map(({ locks }) => locks.close()))
}

const specials = {
  '<empty>': '',
  '<long>': 'x'.repeat(1025),
  '<nul>': 'a\0b',
  // Halves of surrogate pairs: what a string can hold and UTF-8 cannot.
  '<invalid-utf8>': '\udcff\udcfe',
}

function fits(outcome, expected) {
  const bounds = /^(\d+)\.\.(\d+)$/.exec(expected)
  if (bounds === null) return outcome === expected
  return Number(bounds[1]) <= Number(outcome) && Number(outcome) <= Number(bounds[2])
}

/** The error as a scenario writes it; with its message if it was not the one expected. */
function described(error, expected) {
  if (!(error instanceof PolylockError)) throw error
  const argument = error.argument?.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`)
  const named = argument === undefined ? error.code : `${error.code}:${argument}`
  return named === expected ? named : `${named} (${error.message})`
}

async function step(text, expected, { url, actors, real }) {
  const words = text.split(' ')
  const keys = Object.fromEntries(words.filter((word) => /^[a-z_]+=/.test(word)).map((word) => word.split('=')))
  const [name, action, argument, background] = words.filter((word) => !/^[a-z_]+=/.test(word))
  if (name === 'sleep') return (await sleep(Number(action)), '')
  if (name === 'break') return (await promisify(execFile)(process.env.POLYLOCK_TEST_BREAK, [real(action)]), '')
  if (!actors.has(name)) actors.set(name, { locks: connect(url) })
  const actor = actors.get(name)
  const { locks, lease } = actor
  const took = (won) => {
    actor.before = actor.lease
    actor.lease = won
    return 'ok'
  }
  switch (action) {
    case 'acquire': {
      if (background !== '&') return took(await locks.acquire(real(argument), options(keys)))
      actor.cancelling = new AbortController()
      actor.pending = locks.acquire(real(argument), { ...options(keys), signal: actor.cancelling.signal })
      actor.pending.catch(() => {}) // it is awaited by a later step
      return ''
    }
    case 'try': {
      const { wait: _, ...rest } = options(keys)
      const won = await locks.tryAcquire(real(argument), rest)
      return won === null ? 'busy' : took(won)
    }
    case 'join':
      return took(await actor.pending)
    case 'cancel':
      actor.cancelling.abort(new Error('cancelled'))
      return actor.pending.then(
        () => 'too late',
        (error) => error.message,
      )
    case 'waiting':
      return awaited(expected, () => String(locks.waiting(real(argument))))
    case 'inspect': {
      const holder = await locks.inspect(real(argument))
      if (holder === null) return 'free'
      return holder.label === undefined ? 'held' : `held:${holder.label}`
    }
    case 'close':
      return (await locks.close(), 'ok')
    case 'extend':
      return (await lease.extend('ttl' in keys ? milliseconds(keys.ttl) : undefined), 'ok')
    case 'release':
      return lease.release()
    case 'held':
      return lease.isHeld
    case 'remaining':
      return lease.remaining
    case 'newer_than':
      return lease.fencingToken > actors.get(argument).lease.fencingToken
    case 'newer_than_before':
      return lease.fencingToken > actor.before.fencingToken
    case 'lost': {
      const { signal } = lease
      // The timer of `within` keeps the loop alive: a held lease does not.
      if (!signal.aborted) await within(Number(keys.within), '', () => once(signal, 'abort'))
      return signal.aborted ? signal.reason.reason : 'none'
    }
    default:
      throw new Error(`unknown action ${action}`)
  }
}

/** What `operation` resolves to, or `otherwise` after `ms`; keeps the process alive until then. */
async function within(ms, otherwise, operation) {
  const over = new AbortController()
  const limit = sleep(ms, otherwise, { signal: over.signal }).catch(() => otherwise)
  try {
    return await Promise.race([operation(), limit])
  } finally {
    over.abort()
  }
}

function milliseconds(word) {
  return { nan: NaN, none: 0, forever: Infinity }[word] ?? Number(word)
}

function options({ ttl = '5000', wait = 'none', auto_extend = 'true', max_hold, label, ...unknown }) {
  assert.deepEqual(unknown, {})
  const given = { ttl: milliseconds(ttl), wait: milliseconds(wait), autoExtend: auto_extend === 'true', label }
  return max_hold === undefined ? given : { ...given, maxHold: milliseconds(max_hold) }
}

/** Asks until the answer is as expected, or 5 s are over. */
async function awaited(expected, ask) {
  const limit = Date.now() + 5000
  for (;;) {
    const answer = ask()
    if (answer === expected || Date.now() >= limit) return answer
    await sleep(5)
  }
}
