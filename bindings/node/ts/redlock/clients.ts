/** Where the clients that people pass to Redlock are connected to: their settings are read, our own connections opened. */

import { invalid } from '../errors.js'

/** What can be asked of any client. */
export interface Client {
  quit?(...args: never[]): unknown
}

/** The part of a client's settings that says where it is connected to, under the names of the usual clients. */
interface Settings {
  host?: string | null
  port?: number | string | null
  path?: string | null
  db?: number | string | null
  username?: string | null
  password?: string | null
  tls?: unknown
  prefix?: string | null
  sentinels?: unknown
}

/** Where one client is connected to. */
export interface Place {
  url: string
  /** What the client puts before each key. */
  prefix: string
}

type Fields = Record<string, unknown>

/** Reads a URL, an object of settings, or a client of ioredis or node-redis 3, 4 or 5. */
export function placeOf(client: unknown): Place {
  if (typeof client === 'string') return { url: client, prefix: '' }
  if (typeof client !== 'object' && typeof client !== 'function') throw cannotRead('it is neither a URL nor an object')
  if (client === null) throw cannotRead('it is null')
  const fields = client as Fields
  if (fields['isCluster'] === true || 'startupNodes' in fields || typeof fields['nodeClient'] === 'function') {
    throw cannotRead('a cluster is not supported yet')
  }
  if (isFields(fields['connection_options'])) return ofNodeRedis3(fields)
  if ('isOpen' in fields) return ofNodeRedis(fields['options'])
  if (isFields(fields['options'])) return ofIoredis(fields['options'])
  if (typeof fields['url'] === 'string') return { url: fields['url'], prefix: text(fields['keyPrefix']) }
  if ('host' in fields || 'port' in fields || 'path' in fields || 'sentinels' in fields) return ofIoredis(fields)
  throw cannotRead('it has no settings of a client of ioredis or node-redis')
}

/** The places of all clients, which must put the same before their keys. */
export function placesOf(clients: readonly unknown[]): { urls: string[]; prefix: string } {
  const places = clients.map(placeOf)
  const prefix = places[0]?.prefix ?? ''
  if (places.some((place) => place.prefix !== prefix)) throw invalid('clients', 'have different key prefixes')
  return { urls: places.map((place) => place.url), prefix }
}

function ofIoredis(options: Fields): Place {
  const { host, port, path, db, username, password, tls, keyPrefix, sentinels } = options
  return place({ host, port, path, db, username, password, tls, prefix: keyPrefix, sentinels } as Settings)
}

function ofNodeRedis3(client: Fields): Place {
  const { host, port, path } = client['connection_options'] as Settings
  const { user, password, auth_pass, db, tls, prefix } = client['options'] as Fields
  const settings = { host, port, path, db: client['selected_db'] ?? db, username: user, tls, prefix }
  return place({ ...settings, password: password ?? auth_pass } as Settings)
}

function ofNodeRedis(options: unknown): Place {
  const { socket, username, password, database, credentialsProvider } = isFields(options) ? options : {}
  const { host, port, path, tls, ...rest } = isFields(socket) ? socket : {}
  const provider = isFields(credentialsProvider) ? credentialsProvider['type'] : undefined
  if (provider !== undefined && provider !== 'async-credentials-provider') {
    throw cannotRead('its password comes from a credentials provider')
  }
  // Settings of TLS stand beside those of the socket.
  const secure = tls === true ? rest : tls
  return place({ host, port, path, db: database, username, password, tls: secure } as Settings)
}

function place({ host, port, path, db, username, password, tls, prefix, sentinels }: Settings): Place {
  if (Array.isArray(sentinels)) throw cannotRead('sentinels are not supported yet')
  const database = Number(db ?? 0)
  if (!Number.isInteger(database) || database < 0) throw cannotRead(`its database is ${String(db)}`)
  const [user, secret] = [encodeURIComponent(text(username)), encodeURIComponent(text(password))]
  if (text(path) !== '') {
    const login = `${user && `&user=${user}`}${secret && `&pass=${secret}`}`
    return { url: `redis+unix://${encodeURI(text(path))}?db=${database}${login}`, prefix: text(prefix) }
  }
  const login = user === '' && secret === '' ? '' : `${user}:${secret}@`
  const name = text(host) || 'localhost'
  const address = name.includes(':') && !name.startsWith('[') ? `[${name}]` : name
  const scheme = isSecure(tls) ? 'rediss' : 'redis'
  return { url: `${scheme}://${login}${address}:${Number(port ?? 6379)}/${database}`, prefix: text(prefix) }
}

/** Whether TLS is on. What it is verified with cannot be carried over, so it must be what everybody has. */
function isSecure(tls: unknown): boolean {
  if (tls === undefined || tls === null || tls === false) return false
  if (isFields(tls)) {
    const own = ['ca', 'cert', 'key', 'pfx', 'checkServerIdentity', 'secureContext'].find((name) => tls[name] != null)
    if (own !== undefined) throw cannotRead(`its TLS option ${own} cannot be carried over`)
    if (tls['rejectUnauthorized'] === false) throw cannotRead('it does not verify its server')
  }
  return true
}

function isFields(value: unknown): value is Fields {
  return typeof value === 'object' && value !== null
}

function text(value: unknown): string {
  return value === undefined || value === null ? '' : String(value)
}

function cannotRead(why: string): Error {
  return invalid('clients', `has a client whose connection settings cannot be read: ${why}`)
}
