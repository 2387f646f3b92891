// What is published: packed, checked, installed and loaded as users get it; and what they are told where there is no addon.

import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { after, test } from 'node:test'
import { fileURLToPath } from 'node:url'

import { redisUrl } from './support.mjs'

const require = createRequire(import.meta.url)
const here = fileURLToPath(new URL('..', import.meta.url))
const { platform } = require('../dist/platform.js')
const work = mkdtempSync(join(tmpdir(), 'polylock-package-'))
after(() => rmSync(work, { recursive: true }))

const npm = (directory, ...words) =>
  execFileSync('npm', words, { cwd: directory, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
const packages = join(work, 'packages')
const pack = (...words) => spawnSync(process.execPath, [join(here, 'scripts/pack.mjs'), ...words], { encoding: 'utf8' })
const tool = (name, ...words) =>
  spawnSync(process.execPath, [join(here, 'node_modules', name), ...words], { cwd: work, encoding: 'utf8' })

test('packing takes part for part, or fails', () => {
  const addons = join(work, 'addons')
  mkdirSync(addons)
  const none = pack(packages, addons)
  assert.equal(none.status, 1)
  assert.match(none.stderr, /no polylock\.linux-x64-gnu\.node, polylock\.linux-x64-musl\.node/)
  const { status, stderr } = pack(packages, here, platform())
  assert.equal(status, 0, stderr)
  assert.equal(pack('--list').status, 0)
})

test('import gives what require gives', async () => {
  const { exports } = require('../package.json')
  for (const entry of Object.keys(exports).filter((entry) => exports[entry].import)) {
    const name = `polylock${entry.slice(1)}`
    const imported = Object.keys(await import(name))
    assert.deepEqual(
      Object.keys(require(name)).filter((key) => !imported.includes(key)),
      [],
      name,
    )
  }
})

test('the package is right for every way of loading it', () => {
  const file = join(work, npm(join(packages, 'polylock'), 'pack', '--pack-destination', work).trim())
  const types = tool('@arethetypeswrong/cli/dist/index.js', file, '--no-color')
  assert.equal(types.status, 0, types.stdout + types.stderr)
  const lint = tool('publint/src/cli.js', file, '--strict')
  assert.equal(lint.status, 0, lint.stdout + lint.stderr)
  assert.doesNotMatch(lint.stdout, /Suggestions|Warnings|Errors/)
})

test('installed as npm does it, it loads both ways and locks', () => {
  const app = join(work, 'app')
  mkdirSync(app)
  writeFileSync(join(app, 'package.json'), '{"name":"app","private":true}')
  const tarballs = ['polylock', `polylock-${platform()}`].map((name) =>
    join(work, npm(join(packages, name), 'pack', '--pack-destination', work).trim()),
  )
  npm(app, 'install', '--offline', '--no-audit', '--no-fund', '--no-package-lock', ...tarballs)
  const source = `
    const { connect } = require('polylock')
    import('polylock').then(async (imported) => {
      if (imported.connect !== connect || typeof require('polylock/redlock') !== 'function') throw new Error('two of them')
      await connect('memory:').using('r', (lease) => console.log(lease.isHeld))
    })`
  assert.equal(execFileSync(process.execPath, ['-e', source], { cwd: app, encoding: 'utf8' }), 'true\n')
  assert.match(npm(app, 'exec', '--offline', '--', 'polylock', '--version'), /^polylock \d/)
  for (const name of ['polylock', `@polylock/${platform()}`]) {
    for (const text of ['LICENSE-MIT', 'LICENSE-APACHE']) {
      assert.ok(existsSync(join(app, 'node_modules', name, text)), `${name} comes without ${text}`)
    }
  }
})

test('what the README shows runs as it is written', { skip: redisUrl === undefined }, () => {
  const readme = readFileSync(join(here, 'README.md'), 'utf8').replaceAll('redis://localhost:6379', redisUrl)
  const outputs = [...readme.matchAll(/^```js\n(.*?)^```$/gms)].map(([, block], index) => {
    const file = join(work, 'app', `readme${index}.mjs`)
    writeFileSync(file, block)
    return execFileSync(process.execPath, [file], { encoding: 'utf8', timeout: 60_000 })
  })
  assert.equal(outputs.length, 2)
  assert.match(outputs[0], /^charging with token \d+\n$/)
  assert.equal(outputs[1], '')
})

test('without its addon it says what is missing where', () => {
  const bare = join(work, 'bare/node_modules/polylock')
  cpSync(join(packages, 'polylock'), bare, { recursive: true })
  const { version } = JSON.parse(readFileSync(join(bare, 'package.json'), 'utf8'))
  const load = () =>
    spawnSync(process.execPath, ['-e', "require('polylock')"], { cwd: join(work, 'bare'), encoding: 'utf8' })
  const { status, stderr } = load()
  assert.equal(status, 1)
  for (const part of [
    platform(),
    `Node ${process.versions.node}`,
    `@polylock/${platform()}@${version}`,
    'optional',
    'external',
  ]) {
    assert.ok(stderr.includes(part), `${part} in: ${stderr}`)
  }
  // One that is there but cannot be loaded is another matter.
  writeFileSync(join(bare, `polylock.${platform()}.node`), 'no addon')
  const broken = load().stderr
  assert.ok(broken.includes(basename(`polylock.${platform()}.node`)) && !broken.includes('not installed'), broken)
})
