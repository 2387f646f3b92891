/** What Node does not say of an AbortSignal. Others do the same without it. */

import { getEventListeners } from 'node:events'
import { types } from 'node:util'

/**
 * The signals that Node keeps with this one, weakly: those of `AbortSignal.any` that it is part of, or those that it is made of. In an
 * undocumented place, and a set of its own kind: where it is another, there are none.
 */
function kept(signal: AbortSignal, under: 'kDependantSignals' | 'kSourceSignals'): AbortSignal[] {
  const place = Object.getOwnPropertySymbols(signal).find(({ description }) => description === under)
  const references = place && (signal as unknown as Record<symbol, unknown>)[place]
  const signals: AbortSignal[] = []
  if (types.isSet(references)) {
    Set.prototype.forEach.call(references, (reference: Partial<WeakRef<AbortSignal>>) => {
      const signal = reference.deref?.()
      if (signal !== undefined) signals.push(signal)
    })
  }
  return signals
}

/**
 * Whether anybody would hear of this signal: a listener, or a signal of `AbortSignal.any` (the newest Node knows only those that somebody
 * listens to). Where that is not known, nothing is lost but that such a signal keeps no lease.
 */
export function isListenedTo(signal: AbortSignal): boolean {
  return getEventListeners(signal, 'abort').length > 0 || kept(signal, 'kDependantSignals').length > 0
}

/**
 * What `AbortSignal.any` made this one of. To be kept by whoever listens to it: up to Node 20 nobody else does, and a time-out among them
 * that was collected never comes.
 */
export function sourcesOf(signal: AbortSignal): readonly AbortSignal[] {
  return kept(signal, 'kSourceSignals')
}
