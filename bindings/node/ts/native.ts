/** The private addon: how it is found, and what it answers. Its calls are documented in `src/calls.rs`. */

import { existsSync } from 'node:fs'
import { join } from 'node:path'

import type { LossReason } from './errors.js'
import { addonFile, platform } from './platform.js'

/** What a reply is: its second element. */
export const enum Kind {
  Failed = 0,
  Done = 1,
  Leased = 2,
  Busy = 3,
  Released = 4,
  Inspected = 5,
  Lost = 6,
  Number = 7,
  Listed = 8,
  Was = 9,
  Told = 10,
}

export interface ErrorRecord {
  number: number
  code: string
  message: string
  resource?: string
  argument?: string
  causes: string[]
  retryable: boolean
}

export interface HolderRecord {
  owner: string
  fencingToken?: bigint
  expiresIn?: number
  since?: number
  host?: string
  pid?: number
  label?: string
  resource: string
  mode: 'exclusive' | 'shared' | 'permit'
  waiting?: number
}

export interface HistogramRecord {
  bounds: number[]
  counts: number[]
  sum: number
  count: number
}

export interface PointRecord {
  labels: Record<string, string>
  value?: number
  histogram?: HistogramRecord
}

export interface MetricRecord {
  name: string
  help: string
  unit: '' | 's'
  kind: 'counter' | 'gauge' | 'histogram'
  points: PointRecord[]
}

export interface EventRecord {
  kind: 'acquired' | 'contended' | 'extended' | 'extension_failed' | 'lost' | 'released'
  at: number
  resources: string[]
  mode: 'exclusive' | 'shared' | 'permit'
  fencingToken?: bigint
  duration?: number
  reason?: 'expired' | 'taken' | 'max_hold'
  error?: string
}

/** Bits of how to acquire. */
export const enum How {
  AutoExtend = 1,
  /** Try once, and reply `Busy` instead of a time-out. */
  Once = 2,
  /** The end of the process, or of the worker, leaves the lease to its ttl. */
  Stays = 4,
  Fair = 8,
  /** What most servers decided waits a moment for the others. */
  Thorough = 16,
  /** What a minority granted is given back before a failure is told. */
  GivesBack = 32,
}

export type FailedReply = [id: number, kind: Kind.Failed, error: ErrorRecord, _: unknown]

/** How an operation ended, under its number. A lease has the number of the operation that acquired it. */
export type Reply =
  | FailedReply
  | [id: number, kind: Kind.Done, _: unknown, __: unknown]
  | [id: number, kind: Kind.Leased, ownerToken: string, fencingToken: number]
  | [id: number, kind: Kind.Busy, _: unknown, __: unknown]
  | [id: number, kind: Kind.Released, how: 'released' | 'not_held' | 'unknown' | 'ended', lost: LossReason | undefined]
  | [id: number, kind: Kind.Inspected, holder: HolderRecord | null, _: unknown]
  | [id: number, kind: Kind.Lost, reason: LossReason, _: unknown]
  | [id: number, kind: Kind.Number, value: number, _: unknown]
  | [id: number, kind: Kind.Listed, holders: HolderRecord[], _: unknown]
  | [id: number, kind: Kind.Was, value: boolean, _: unknown]
  | [id: number, kind: Kind.Told, events: EventRecord[], _: unknown]

/** Four values for each reply. */
export type Replies = Reply[number][]

/** A reply, or the number of the operation that it will come for. */
export type Started = Reply | number

interface Native {
  open(deliver: (...replies: Replies) => void, hasLibuv: boolean): Reply
  cancel(operation: number): boolean
  connect(urls: string[], prefix?: string, driftFactor?: number, nodeTimeout?: number): Reply
  acquire(
    manager: number,
    resource: string | readonly string[],
    mode: number,
    ttl: number,
    wait: number,
    how: number,
    maxHold: number | undefined,
    label: string | undefined,
    retried?: number,
  ): Started
  inspect(manager: number, resource: string): Started
  list(manager: number, pattern: string, limit: number): Started
  breakLock(manager: number, resource: string, fencingToken?: bigint, owner?: string): Started
  extendFor(manager: number, resources: readonly string[], owner: string, ttl: number): Started
  metrics(manager: number): MetricRecord[] | FailedReply
  metricsText(manager: number): string | FailedReply
  subscribe(manager: number): Reply
  unsubscribe(subscription: number): void
  waiting(manager: number, resource: string): Reply
  capabilities(manager: number): CapabilitiesRecord | FailedReply
  close(manager: number): Started
  forgetManager(manager: number): void
  extend(lease: number, ttl?: number): Started
  release(lease: number): Started
  forgetLease(lease: number): string | null
  leave(lease: number): Reply
  deadline(lease: number): number | null
  remaining(lease: number): number
  isHeld(lease: number): boolean
  loss(lease: number): LossReason | null
  lastFailure(lease: number): string | null
  shutdown(ms: number): void
  commandLine(words: string[]): number
}

export interface CapabilitiesRecord {
  guarantee: 'best_effort' | 'lease' | 'fenced'
  fencing: boolean
  acrossProcesses: boolean
  acrossHosts: boolean
  shared: boolean
  semaphore: boolean
  several: boolean
  inspection: boolean
  listing: boolean
  breaking: boolean
  fair: boolean
}

export const native: Native = load()

/**
 * What this environment has once, under `name`. A test runner that loads the package anew for each file (Jest) gives all of these copies the
 * one addon that Node has loaded, and that answers to the first of them: so what it answers to is kept with the addon.
 */
export function once<T>(name: string, make: () => T): T {
  const kept = native as unknown as Record<string, T | undefined>
  return (kept[name] ??= make())
}

/** Whether the event loop can watch the engine. Bun's cannot; and tests have Node do without. */
export const hasLibuv = !('bun' in process.versions) && process.env['POLYLOCK_WITHOUT_LIBUV'] === undefined

function load(): Native {
  // It lacks what the addon is linked with.
  if ('deno' in process.versions) throw new Error('polylock is for Node and Bun; Deno is not supported yet')
  const built = join(__dirname, '..', addonFile())
  const name = `@polylock/${platform()}`
  try {
    return require(existsSync(built) ? built : name) as Native
  } catch (cause) {
    throw new Error(notLoaded(name, cause as NodeJS.ErrnoException), { cause })
  }
}

/** Why there is no addon, and what to do about it. */
function notLoaded(name: string, cause: NodeJS.ErrnoException): string {
  const { version } = require('../package.json') as { version: string }
  const here = `polylock ${version} cannot load its addon for ${platform()} (Node ${process.versions.node})`
  if (cause.code !== 'MODULE_NOT_FOUND') return `${here}: ${cause.message}`
  return (
    `${here}: the package ${name}@${version} is not installed. If there is one for this platform, npm did not install it: ` +
    `it is an optional dependency, so install without --omit=optional (or --no-optional), and if the lock file was made on ` +
    `another platform, remove it and node_modules and install again. In a bundle there is no addon: tell the bundler that polylock is ` +
    `external, and install it beside the bundle. In a checkout, run: npm run build`
  )
}
