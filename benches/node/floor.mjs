// The floor: our two scripts over one socket, with nothing around them.
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'

const scripts = new URL('../../core/src/backend/redis/scripts/', import.meta.url)
const ttl = 30_000
const fenceTtl = 86_400_000

export class Floor {
  #socket
  #name
  #answered
  #pairs = 0
  #acquire
  #release

  static async open(url, name) {
    const floor = new Floor()
    const { hostname, port } = new URL(url)
    floor.#name = name
    floor.#socket = connect(Number(port), hostname).setNoDelay(true)
    // The replies are small: they come in one piece.
    floor.#socket.on('data', (reply) => floor.#answered(reply))
    floor.#acquire = await floor.#load('acquire.lua', 'acquire_one.lua')
    floor.#release = await floor.#load('release.lua')
    return floor
  }

  async pair() {
    const owner = (++this.#pairs).toString(16).padStart(40, '0')
    const micros = Math.round((performance.timeOrigin + performance.now()) * 1000)
    const now = Math.floor(micros / 1000)
    const fence = `polylock:fence:{${this.#name}}`
    const record = `${micros} ${owner} ${now}\n1\nhost\n`
    const keys = [3, this.#name, fence, `polylock:writer:{${this.#name}}`]
    await this.#call('EVALSHA', this.#acquire, ...keys, owner, ttl, micros, now + ttl, record, fenceTtl)
    await this.#call('EVALSHA', this.#release, 1, this.#name, owner, `polylock:wake:{${this.#name}}`)
  }

  /** Has the server answer nobody, this one included, for so many milliseconds. */
  async silence(ms) {
    await this.#call('CLIENT', 'PAUSE', ms, 'ALL')
    this.close()
  }

  close() {
    this.#socket.destroy()
  }

  async #load(...parts) {
    const script = parts.map((part) => readFileSync(new URL(part, scripts), 'utf8')).join('')
    const reply = await this.#call('SCRIPT', 'LOAD', script)
    return reply.toString().split('\r\n')[1]
  }

  #call(...words) {
    let request = `*${words.length}\r\n`
    for (const word of words) request += `$${Buffer.byteLength(String(word))}\r\n${word}\r\n`
    return new Promise((resolve, reject) => {
      this.#answered = (reply) => (reply[0] === 0x2d ? reject(new Error(reply.toString())) : resolve(reply))
      this.#socket.write(request)
    })
  }
}
