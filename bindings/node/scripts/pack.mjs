// Makes what is published: `pack.mjs OUTPUT ADDONS [PLATFORM…]`.
//
// ADDONS is a directory with the addons of all platforms, as in polylock.linux-x64-gnu.node. OUTPUT gets a directory for
// each package: `polylock`, and `polylock-PLATFORM` for @polylock/PLATFORM, which holds the addon alone. The former names all of
// the latter as optional dependencies of its own version, so that npm installs the one that fits.
//
// Fails if anything is missing: an addon, a part of the package, or one version for all. With PLATFORMs, only these are
// packed: for tests.

import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import process from 'node:process'
import { fileURLToPath } from 'node:url'

const here = dirname(dirname(fileURLToPath(import.meta.url)))

/** Where addons are built for, by the ends of the packages' names. */
const platforms = {
  'linux-x64-gnu': { os: 'linux', cpu: 'x64', libc: 'glibc', triple: 'x86_64-unknown-linux-gnu' },
  'linux-x64-musl': { os: 'linux', cpu: 'x64', libc: 'musl', triple: 'x86_64-unknown-linux-musl' },
  'linux-arm64-gnu': { os: 'linux', cpu: 'arm64', libc: 'glibc', triple: 'aarch64-unknown-linux-gnu' },
  'linux-arm64-musl': { os: 'linux', cpu: 'arm64', libc: 'musl', triple: 'aarch64-unknown-linux-musl' },
}

if (process.argv[2] === '--list') {
  // For the release's matrix.
  console.log(JSON.stringify(Object.entries(platforms).map(([platform, { triple }]) => ({ platform, triple }))))
  process.exit()
}
const [output, addons, ...asked] = process.argv.slice(2)
if (addons === undefined) fail('usage: pack.mjs OUTPUT ADDONS [PLATFORM...]')

const manifest = JSON.parse(readFileSync(join(here, 'package.json'), 'utf8'))
const cargo = readFileSync(join(here, '../../Cargo.toml'), 'utf8')
const version = /^version = "(.+)"$/m.exec(cargo)?.[1]
if (version !== manifest.version) fail(`package.json is of version ${manifest.version}, Cargo.toml of ${version}`)

const licences = ['LICENSE-MIT', 'LICENSE-APACHE']
const names = asked.length > 0 ? asked : Object.keys(platforms)
const wanted = names.map((name) => `polylock.${name}.node`)
const missing = wanted.filter((file) => !existsSync(join(addons, file)))
if (missing.length > 0) fail(`no ${missing.join(', ')} in ${addons}, where there is: ${readdirSync(addons).join(', ')}`)

rmSync(output, { recursive: true, force: true })
const { repository, license, author } = manifest
for (const name of names) {
  const platform = platforms[name] ?? fail(`${name} is none of ${Object.keys(platforms).join(', ')}`)
  const addon = `polylock.${name}.node`
  write(join(output, `polylock-${name}`), {
    name: `@polylock/${name}`,
    version,
    description: `The addon of polylock for ${name}`,
    license,
    author,
    repository,
    main: addon,
    files: [addon, ...licences],
    os: [platform.os],
    cpu: [platform.cpu],
    libc: [platform.libc],
    engines: manifest.engines,
  })
  cpSync(join(addons, addon), join(output, `polylock-${name}`, addon))
}

// No addon, nothing to build it with, and nothing to run at installation.
const { scripts: _, devDependencies: __, prettier: ___, ...published } = manifest
write(join(output, 'polylock'), {
  ...published,
  files: [...manifest.files, ...licences],
  optionalDependencies: Object.fromEntries(names.map((name) => [`@polylock/${name}`, version])),
})
for (const part of manifest.files) cpSync(join(here, part), join(output, 'polylock', part), { recursive: true })
for (const file of Object.values(manifest.exports).flatMap((entry) => paths(entry))) {
  if (!existsSync(join(output, 'polylock', file))) fail(`the package has no ${file}, which it exports`)
}
console.log(`${resolve(output)}: polylock ${version} and ${names.length} addons`)

function write(directory, content) {
  mkdirSync(directory, { recursive: true })
  writeFileSync(join(directory, 'package.json'), `${JSON.stringify(content, null, 2)}\n`)
  for (const text of licences) cpSync(join(here, '../..', text), join(directory, text))
}

function paths(entry) {
  return typeof entry === 'string' ? [entry] : Object.values(entry).flatMap((part) => paths(part))
}

function fail(why) {
  console.error(`pack.mjs: ${why}`)
  process.exit(1)
}
