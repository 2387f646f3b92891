/** Checks what callers pass: a wrong type is a `TypeError` that names the argument. Values are the engine's to judge. */

import { invalid } from './errors.js'

function kindOf(value: unknown): string {
  if (value === null) return 'null'
  return typeof value === 'object' ? (value.constructor?.name ?? 'object') : typeof value
}

function wrong(argument: string, wanted: string, value: unknown): TypeError {
  return new TypeError(`${argument} must be ${wanted}, not ${kindOf(value)}`)
}

const halfPair = /\p{Surrogate}/u
/** Node 20 has it, and quicker. */
const isWellFormed = (String.prototype as { isWellFormed?(): boolean }).isWellFormed

/** A string that UTF-8 can hold. */
export function string(argument: string, value: unknown): string {
  if (typeof value !== 'string') throw wrong(argument, 'a string', value)
  const wellFormed = isWellFormed === undefined ? !halfPair.test(value) : isWellFormed.call(value)
  if (!wellFormed) throw invalid(argument, 'must be well-formed Unicode (it has half a surrogate pair)')
  return value
}

export function optionalString(argument: string, value: unknown): string | undefined {
  return value === undefined ? undefined : string(argument, value)
}

export function number(argument: string, value: unknown): number {
  if (typeof value !== 'number') throw wrong(argument, 'a number', value)
  return value
}

/** A whole number from 1 to `most`: made whole, it would be another one than was given. */
export function whole(argument: string, value: unknown, most: number): number {
  const given = number(argument, value)
  if (Number.isInteger(given) && given >= 1 && given <= most) return given
  throw invalid(argument, `must be a whole number from 1 to ${most.toLocaleString('en')}, not ${given}`)
}

export function optionalNumber(argument: string, value: unknown): number | undefined {
  return value === undefined ? undefined : number(argument, value)
}

export function boolean(argument: string, value: unknown): boolean {
  if (typeof value !== 'boolean') throw wrong(argument, 'a boolean', value)
  return value
}

export function fn<F>(argument: string, value: F | undefined): F {
  if (typeof value !== 'function') throw wrong(argument, 'a function', value)
  return value
}

const none = {}

const tagOf = Object.prototype.toString

/** An array, a Date, a Map or a Promise has no options, whatever it holds; an instance of a class of the caller's may. */
function canHaveOptions(value: object): boolean {
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null || tagOf.call(value) === '[object Object]'
}

/** One that is not `known` is refused: a misspelt `wait` would wait for ever. */
export function options<T extends object>(value: T | undefined, known: readonly (keyof T & string)[]): Partial<T> {
  if (value === undefined) return none
  if (!canHaveOptions(object('options', 'an object', value))) throw wrong('options', 'an object of options', value)
  for (const name in value) {
    if (!known.includes(name)) throw invalid(name, `is no option here; there are ${known.join(', ')}`)
  }
  return value
}

export function object<T extends object>(argument: string, wanted: string, value: T): T {
  if (typeof value !== 'object' || value === null) throw wrong(argument, wanted, value)
  return value
}

export function optionalSignal(argument: string, value: unknown): AbortSignal | undefined {
  if (value === undefined) return undefined
  // Not instanceof: signals come from other realms and from polyfills.
  const signal = value as AbortSignal
  if (
    typeof value !== 'object' ||
    value === null ||
    typeof signal.aborted !== 'boolean' ||
    typeof signal.addEventListener !== 'function' ||
    typeof signal.removeEventListener !== 'function'
  ) {
    throw wrong(argument, 'an AbortSignal', value)
  }
  return signal
}

/** Why it was aborted; polyfills do not say. */
export function reasonOf(signal: AbortSignal): unknown {
  return signal.reason === undefined ? new DOMException('This operation was aborted', 'AbortError') : signal.reason
}

/** Several names, in the order of the engine: by their bytes. */
export function names(argument: string, value: unknown): readonly string[] {
  if (!Array.isArray(value)) throw wrong(argument, 'an array of strings', value)
  const all = Array.from(value, (name) => string(argument, name))
  return all.length < 2 ? all : all.sort((one, other) => Buffer.compare(Buffer.from(one), Buffer.from(other)))
}

/** A list of any kind. A string is one, of letters: that is never meant. */
export function list<T>(argument: string, value: Iterable<T>): readonly T[] {
  if (Array.isArray(value)) return value
  if (typeof value === 'object' && value !== null && Symbol.iterator in value) return [...value]
  throw wrong(argument, 'an array', value)
}

/** A URL or a list of them. */
export function urls(value: unknown): string[] {
  if (Array.isArray(value)) return Array.from(value, (url) => string('url', url))
  if (typeof value !== 'string') throw wrong('url', 'a string or an array of strings', value)
  return [string('url', value)]
}
