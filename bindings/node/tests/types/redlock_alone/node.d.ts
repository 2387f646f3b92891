// What the declarations need of Node, whichever version of its types a program has.

declare module 'node:events' {
  export class EventEmitter {
    on(event: string, listener: (...args: any[]) => void): this
  }
}

interface AbortSignal {
  readonly aborted: boolean
}
