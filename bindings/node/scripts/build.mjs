// Builds the package in its checkout: the addon with cargo, the TypeScript with tsc.
//
// npm runs this as `prepare`: for `npm install` here, and for `npm install ./bindings/node` elsewhere, where npm links
// this directory and does not install what it needs to be built. So this script installs that itself.
//
// POLYLOCK_PROFILE=dev builds the addon faster and slower to run; the default is release.

import { spawnSync } from 'node:child_process'
import { chmodSync, copyFileSync, existsSync, renameSync, rmSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = dirname(dirname(fileURLToPath(import.meta.url)))
const profile = process.env.POLYLOCK_PROFILE ?? 'release'

if (!existsSync(join(here, 'Cargo.toml')) || !existsSync(join(here, '../../Cargo.toml'))) {
  // A published package: it was built before.
  process.exit(0)
}

buildTypeScript()
buildAddon()

function buildAddon() {
  const lines = run('cargo', [
    'build',
    '-p',
    'polylock-node',
    '--profile',
    profile,
    '--message-format=json-render-diagnostics',
  ])
  const library = lines
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line))
    .filter((message) => message.reason === 'compiler-artifact' && message.target.name === 'polylock_node')
    .flatMap((message) => message.filenames)
    .find((name) => /\.(so|dylib|dll)$/.test(name))
  if (library === undefined) throw new Error('cargo built no addon')
  // Renamed into place: a running process may have the old one mapped.
  const { addonFile } = createRequire(import.meta.url)('../dist/platform.js')
  const addon = join(here, addonFile())
  copyFileSync(library, `${addon}.new`)
  renameSync(`${addon}.new`, addon)
}

function buildTypeScript() {
  if (!existsSync(join(here, 'node_modules/typescript')) || !existsSync(join(here, 'node_modules/@types/node'))) {
    run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'])
  }
  rmSync(join(here, 'dist'), { recursive: true, force: true })
  run(process.execPath, [join(here, 'node_modules/typescript/bin/tsc'), '-p', here])
  // Where npm links this directory, it links this file.
  chmodSync(join(here, 'dist/cli.js'), 0o755)
}

function run(command, args) {
  const { status, stdout, error } = spawnSync(command, args, {
    cwd: here,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, npm_config_ignore_scripts: 'true' },
  })
  if (error !== undefined)
    throw new Error(`${command} cannot run: ${error.message}. A checkout is built with cargo and npm.`)
  if (status !== 0) {
    process.stderr.write(command === 'cargo' ? '' : stdout)
    process.exit(status ?? 1)
  }
  return stdout
}
