/** Events of a manager, as a Node `EventEmitter` has them. */

import { EventEmitter } from 'node:events'

import { type Subscriber, subscribe, unsubscribe } from './loop.js'
import type { EventRecord } from './native.js'

/** Something that happened to a lease, or on the way to one. `duration` is in milliseconds. */
export type LockEvent = Readonly<EventRecord>

/** What can happen: `contended` comes once for each acquisition that finds somebody else holding. `event` is any of them. */
export type LockEventName = EventRecord['kind'] | 'event'

const NAMES: ReadonlySet<string | symbol> = new Set<LockEventName>([
  'acquired',
  'contended',
  'extended',
  'extension_failed',
  'lost',
  'released',
  'event',
])

/** An emitter of {@link LockEvent}s. The engine is asked for them only while somebody listens. */
export class LockEvents extends EventEmitter {
  #subscription = 0
  readonly #subscriber: Subscriber = { told: (events) => this.#told(events) }

  /** @internal */
  constructor(manager: number) {
    super()
    // These two are emitted before a listener is added, and after one was removed.
    super.on('newListener', (name: string | symbol) => {
      if (NAMES.has(name) && this.#subscription === 0) this.#subscription = subscribe(manager, this.#subscriber)
    })
    super.on('removeListener', () => {
      if (this.#subscription !== 0 && !this.eventNames().some((name) => NAMES.has(name))) {
        unsubscribe(this.#subscription)
        this.#subscription = 0
      }
    })
  }

  #told(events: EventRecord[]): void {
    for (const event of events) {
      for (const name of [event.kind, 'event']) {
        try {
          this.emit(name, event)
        } catch (error) {
          // As if it had been called from the loop by itself: it takes nobody else's events along.
          process.nextTick(() => {
            throw error
          })
        }
      }
    }
  }
}

export interface LockEvents {
  on(name: LockEventName, listener: (event: LockEvent) => void): this
  once(name: LockEventName, listener: (event: LockEvent) => void): this
  off(name: LockEventName, listener: (event: LockEvent) => void): this
  addListener(name: LockEventName, listener: (event: LockEvent) => void): this
  removeListener(name: LockEventName, listener: (event: LockEvent) => void): this
}
