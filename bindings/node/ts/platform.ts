/** Which addon this machine needs. */

import { readFileSync } from 'node:fs'

/** As in `linux-x64-gnu`: also the end of the platform package's name. */
export function platform(): string {
  const libc = process.platform === 'linux' ? (isMusl() ? '-musl' : '-gnu') : ''
  return `${process.platform}-${process.arch}${libc}`
}

/** The name of the addon's file. */
export function addonFile(): string {
  return `polylock.${platform()}.node`
}

/** Whether this Node was built for musl: by what is mapped into it, since a machine may have both. */
function isMusl(): boolean {
  try {
    return readFileSync('/proc/self/maps', 'latin1').includes('ld-musl-')
  } catch {
    // No /proc: Node itself says what it was linked with.
    const { header } = (process.report?.getReport() ?? {}) as { header?: { glibcVersionRuntime?: string } }
    return header !== undefined && header.glibcVersionRuntime === undefined
  }
}
