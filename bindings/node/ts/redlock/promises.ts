/** The promises of redlock 4: bluebird's where the program has bluebird, with optional callbacks. */

import { dirname } from 'node:path'

/** A callback as Node's own used to be. */
export type Callback<T> = (error: any, value?: T) => void

interface Bluebird {
  resolve<T>(value: T | PromiseLike<T>): BluebirdPromise<T>
}

interface BluebirdPromise<T> extends Promise<T> {
  disposer(dispose: (value: T) => unknown): unknown
}

let bluebird: Bluebird | null | undefined

/** The program's own bluebird: another copy's disposers would mean nothing to its `using`. */
function findBluebird(): Bluebird | null {
  if (bluebird === undefined) {
    const main = require.main?.filename
    const paths = [...(main === undefined ? [] : [dirname(main)]), process.cwd(), __dirname]
    try {
      bluebird = require(require.resolve('bluebird', { paths })) as Bluebird
    } catch {
      bluebird = null
    }
  }
  return bluebird
}

/** `promise` for callers of redlock 4, also told to `callback`. */
export function settle<T>(promise: Promise<T>, callback?: Callback<T>): Promise<T> {
  const given = findBluebird()?.resolve(promise) ?? promise
  if (typeof callback === 'function') {
    // Listens to the very promise that is given out: whoever has a callback need not look at that as well.
    // Called outside of it: what a callback throws is an uncaught exception and not a rejection.
    given.then(
      (value) => process.nextTick(callback, null, ...(value === undefined ? [] : [value])),
      (error: Error) => process.nextTick(callback, error),
    )
  }
  return given
}

/** For bluebird's `Promise.using`. */
export function disposable<T>(promise: Promise<T>, dispose: (value: T) => unknown): unknown {
  const found = findBluebird()
  if (found === null) throw new Error('disposer() needs the package bluebird, whose Promise.using it is for')
  return found.resolve(promise).disposer(dispose)
}
