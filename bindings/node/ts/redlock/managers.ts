/** The managers behind Redlocks. Programs make a Redlock of the same clients for each request: those share one, and its connections. */

import { closed } from '../errors.js'
import { connect, type LockManager } from '../manager.js'
import { placesOf } from './clients.js'

interface Shared {
  /** Weakly: it is let go of with the last Redlock, whether that was quit or not. */
  manager: WeakRef<LockManager>
  /** Redlocks that were made and not quit. */
  users: number
}

const managers = new Map<string, Shared>()

/** One Redlock's part in a manager. */
export class Use {
  readonly #key: string
  #manager: LockManager | undefined

  /** Throws `InvalidArgumentError` for a client whose settings cannot be read. */
  constructor(clients: readonly unknown[], driftFactor: number) {
    const { urls, prefix } = placesOf(clients)
    this.#key = JSON.stringify([urls, prefix, driftFactor])
    const shared = managers.get(this.#key)
    this.#manager = shared?.manager.deref()
    if (shared !== undefined && this.#manager !== undefined) {
      shared.users++
      return
    }
    this.#manager = connect(urls, { prefix, driftFactor })
    managers.set(this.#key, { manager: new WeakRef(this.#manager), users: 1 })
  }

  /** Throws `ClosedError` after `end`. */
  get manager(): LockManager {
    if (this.#manager === undefined) throw closed('the Redlock was quit')
    return this.#manager
  }

  /** Closes the manager, unless others use it. */
  async end(): Promise<void> {
    const manager = this.#manager
    const shared = managers.get(this.#key)
    this.#manager = undefined
    if (manager === undefined || shared?.manager.deref() !== manager || --shared.users > 0) return
    managers.delete(this.#key)
    await manager.close()
  }
}
