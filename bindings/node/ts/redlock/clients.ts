/** Where the clients that people pass to Redlock are connected to: their settings are read, our own connections opened. */

import { invalid } from '../errors.js'

/** What can be asked of any client. */
export interface Client {
  quit?(...args: never[]): unknown
  /** A pool has this alone. */
  close?(): unknown
}

/** A client as the program gave it: that has a type of its own. */
export type AnyClient = any

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
}

/** Where one client is connected to. */
export interface Place {
  url: string
  /** What the client puts before each key. */
  prefix: string
}

type Fields = Record<string, unknown>

/** Reads a URL, an object of settings, a client of ioredis (sentinels and `Cluster` as well) or of node-redis 3 to 6 (clusters and pools as well). */
export function placeOf(client: unknown): Place {
  if (typeof client === 'string') return { url: client, prefix: '' }
  if (typeof client !== 'object' && typeof client !== 'function') throw cannotRead('it is neither a URL nor an object')
  if (client === null) throw cannotRead('it is null')
  const fields = client as Fields
  if (Array.isArray(fields['startupNodes'])) return ofCluster(fields['startupNodes'], fields['options'])
  if ('nodeClient' in fields) {
    // Newer versions of node-redis show what it was made of.
    return isFields(fields['_options']) ? ofNodeRedisCluster(fields['_options']) : ofConnectedCluster(fields['masters'])
  }
  if ('totalClients' in fields) return ofPool(fields as unknown as Pool)
  if ('getSentinelNode' in fields) {
    const instead = 'give a URL instead, as in redis+sentinel://host,host/master'
    throw cannotRead(`createSentinel of node-redis does not show them; ${instead}`)
  }
  if (isFields(fields['connection_options']) && isFields(fields['options'])) return ofNodeRedis3(fields)
  if ('isOpen' in fields && typeof fields['sendCommand'] === 'function') return ofNodeRedis(fields['options'])
  // What stands in for a client in tests has options, too, and is connected to nothing.
  if (isFields(fields['connector']) && isFields(fields['options'])) {
    // Where `select` has led it since.
    const selected = isFields(fields['condition']) ? fields['condition']['select'] : undefined
    return ofIoredis({ ...fields['options'], db: selected ?? fields['options']['db'] })
  }
  if (typeof fields['url'] === 'string') return ofUrl(fields['url'], fields)
  if (client instanceof URL) return { url: client.href, prefix: '' }
  if (typeof fields['on'] !== 'function') {
    if ('socket' in fields) return ofNodeRedis(fields)
    if ('host' in fields || 'port' in fields || 'path' in fields || 'sentinels' in fields) return ofSettings(fields)
  }
  throw cannotRead('it has no settings of a client of ioredis or node-redis')
}

/** The places of all clients, which must put the same before their keys. */
export function placesOf(clients: readonly unknown[]): { urls: string[]; prefix: string } {
  const places = clients.map(placeOf)
  const prefix = places[0]?.prefix ?? ''
  if (places.some((place) => place.prefix !== prefix)) throw invalid('clients', 'have different key prefixes')
  return { urls: places.map((place) => place.url), prefix }
}

function ofUrl(url: string, { keyPrefix, url: _, ...rest }: Fields): Place {
  const besides = Object.keys(rest).filter((name) => rest[name] != null)
  if (besides.length > 0) throw cannotRead(`what is beside its url belongs into it: ${besides.join(', ')}`)
  return { url, prefix: text(keyPrefix) }
}

/** What one of the usual clients might be made of, whichever: some settings have several names. */
function ofSettings(fields: Fields): Place {
  return ofIoredis({
    ...fields,
    db: fields['db'] ?? fields['database'],
    username: fields['username'] ?? fields['user'],
    password: fields['password'] ?? fields['auth_pass'],
    keyPrefix: fields['keyPrefix'] ?? fields['prefix'],
  })
}

function ofIoredis(options: Fields): Place {
  const { host, port, path, db, username, password, tls, keyPrefix } = options
  if (options['Connector'] != null) throw cannotRead('its Connector alone knows where the server is')
  if (Array.isArray(options['sentinels'])) return ofSentinels(options['sentinels'], options)
  return place({ host, port, path, db, username, password, tls, prefix: keyPrefix } as Settings)
}

function ofSentinels(sentinels: readonly unknown[], options: Fields): Place {
  if (options['role'] === 'slave') throw cannotRead('it is of a replica, which keeps no locks')
  if (options['natMap'] != null) throw cannotRead('its natMap cannot be carried over')
  const secure = isSecure(options['tls'])
  const secureToo = isSecure(options['sentinelTLS']) || options['enableTLSForSentinelMode'] === true
  if (secure !== secureToo) throw cannotRead('only one of its server and its sentinels is spoken to by TLS')
  const { db, username, password, name } = options as Settings & { name?: unknown }
  const query = login('sentinel_user', options['sentinelUsername'], 'sentinel_password', options['sentinelPassword'])
  const hosts = sentinels.map((sentinel) => address(sentinel as Settings, 26379))
  const path = `${encodeURIComponent(text(name))}/${database(db)}`
  const scheme = secure ? 'rediss+sentinel' : 'redis+sentinel'
  const url = `${scheme}://${user(username, password)}${hosts.join()}/${path}${query && `?${query}`}`
  return { url, prefix: text(options['keyPrefix']) }
}

function ofCluster(nodes: readonly unknown[], options: unknown): Place {
  const { redisOptions, keyPrefix, natMap, useSRVRecords } = isFields(options) ? options : {}
  if (natMap != null) throw cannotRead('its natMap cannot be carried over')
  if (useSRVRecords === true) throw cannotRead('its nodes are names of SRV records')
  const common = isFields(redisOptions) ? redisOptions : {}
  const places = nodes.map((node): Settings => {
    if (isFields(node)) return node as Settings
    if (/^\d+$/.test(text(node))) return { port: Number(node) }
    const { hostname, port, username, password } = new URL(
      /^\w+:\/\//.test(text(node)) ? text(node) : `redis://${text(node)}`,
    )
    return { host: hostname, port, username: decodeURIComponent(username), password: decodeURIComponent(password) }
  })
  return clusterAt(places, common as Settings, keyPrefix ?? common['keyPrefix'])
}

/** A cluster with these nodes, which must all be spoken to in one way. What they do not say themselves is in `common`. */
function clusterAt(nodes: readonly Settings[], common: Settings, keyPrefix: unknown): Place {
  const beginnings = nodes.map((node) => {
    const isEither = [node.tls, common.tls].map((tls) => isSecure(tls)).includes(true)
    const scheme = isEither ? 'rediss+cluster' : 'redis+cluster'
    return `${scheme}://${user(node.username || common.username, node.password || common.password)}`
  })
  const [beginning = ''] = beginnings
  if (beginnings.some((other) => other !== beginning)) throw cannotRead('its nodes have different logins or TLS')
  const hosts = nodes.map((node) => address(node, 6379))
  return { url: beginning + hosts.join(), prefix: text(keyPrefix) }
}

function ofNodeRedis3(client: Fields): Place {
  const { host, port, path } = client['connection_options'] as Settings
  const { user, password, auth_pass, db, tls, prefix } = client['options'] as Fields
  const settings = { host, port, path, db: client['selected_db'] ?? db, username: user, tls, prefix }
  return place({ ...settings, password: password ?? auth_pass } as Settings)
}

function ofNodeRedis(options: unknown): Place {
  return place(settingsOfNodeRedis(options))
}

function ofNodeRedisCluster({ rootNodes, defaults, nodeAddressMap }: Fields): Place {
  if (!Array.isArray(rootNodes)) throw cannotRead('it names no nodes')
  if (nodeAddressMap != null) throw cannotRead('its nodeAddressMap cannot be carried over')
  const given = (settings: Settings): Settings =>
    Object.fromEntries(Object.entries(settings).filter(([, value]) => value != null))
  return clusterAt(rootNodes.map(settingsOfNodeRedis).map(given), given(settingsOfNodeRedis(defaults)), '')
}

/** One that hides what it was made of shows its nodes, and their clients, while it is connected. */
function ofConnectedCluster(masters: unknown): Place {
  const nodes = (Array.isArray(masters) ? masters : []).filter(isFields)
  const clients = nodes.flatMap(({ host, port, client }) =>
    isFields(client) && isFields(client['options'])
      ? [{ host, port, settings: settingsOfNodeRedis(client['options']) }]
      : [],
  )
  const [first] = clients
  if (first === undefined) {
    const instead = 'await its connect() first, or give a URL, as in redis+cluster://host,host'
    throw cannotRead(`an older createCluster of node-redis shows them only while it is connected; ${instead}`)
  }
  if (clients.some(({ host, port, settings }) => host !== settings.host || port !== settings.port)) {
    throw cannotRead('its nodeAddressMap cannot be carried over')
  }
  const { username, password, tls } = first.settings
  return clusterAt(nodes as Settings[], { username, password, tls } as Settings, '')
}

/** What is public of a pool. */
interface Pool {
  readonly idleClients: number
  execute(use: (client: Fields) => void): Promise<void>
}

/** The settings of its clients, of which it lends an idle one at once. */
function ofPool(pool: Pool): Place {
  let options: unknown
  if (pool.idleClients > 0) {
    pool
      .execute((client) => {
        options = client['options']
      })
      .catch(() => undefined)
  }
  if (!isFields(options)) {
    const instead = 'await its connect() first, or give a URL'
    throw cannotRead(`createClientPool of node-redis shows them only while it has an idle client; ${instead}`)
  }
  return ofNodeRedis(options)
}

function settingsOfNodeRedis(options: unknown): Settings {
  // A client has read its URL; a node of a cluster has not.
  if (isFields(options) && typeof options['url'] === 'string') {
    const { protocol, hostname, port, username, password } = new URL(options['url'])
    const login = { username: decodeURIComponent(username) || null, password: decodeURIComponent(password) || null }
    const { url: _, ...rest } = options
    return { ...settingsOfNodeRedis(rest), host: hostname, port, tls: protocol === 'rediss:', ...login }
  }
  const { socket, username, password, database, credentialsProvider } = isFields(options) ? options : {}
  const { host, port, path, tls, ...rest } = isFields(socket) ? socket : {}
  // It has one of its own making for a name and a password that it was given.
  const isOwn = isFields(credentialsProvider) && credentialsProvider['type'] === 'async-credentials-provider'
  if (credentialsProvider != null && !(isOwn && (username ?? password) != null)) {
    throw cannotRead('its password comes from a credentials provider')
  }
  // Settings of TLS stand beside those of the socket.
  const secure = tls === true ? rest : tls
  return { host, port, path, db: database, username, password, tls: secure } as Settings
}

function place({ host, port, path, db, username, password, tls, prefix }: Settings): Place {
  if (text(path) !== '') {
    const more = login('user', username, 'pass', password)
    return {
      url: `redis+unix://${encodeURI(text(path))}?db=${database(db)}${more && `&${more}`}`,
      prefix: text(prefix),
    }
  }
  const scheme = isSecure(tls, host) ? 'rediss' : 'redis'
  const at = address({ host, port } as Settings, 6379)
  return { url: `${scheme}://${user(username, password)}${at}/${database(db)}`, prefix: text(prefix) }
}

function address({ host, port }: Settings, usual: number): string {
  const name = text(host) || 'localhost'
  if (/[@/?#,]/.test(name)) throw cannotRead(`its host is ${name}`)
  return `${name.includes(':') && !name.startsWith('[') ? `[${name}]` : name}:${Number(port || usual)}`
}

function database(db: unknown): number {
  const number = Number(db ?? 0)
  if (!Number.isInteger(number) || number < 0) throw cannotRead(`its database is ${String(db)}`)
  return number
}

/** Before the host of a URL. */
function user(username: unknown, password: unknown): string {
  const [name, secret] = [encodeURIComponent(text(username)), encodeURIComponent(text(password))]
  return name === '' && secret === '' ? '' : `${name}:${secret}@`
}

/** Behind the question mark of a URL. */
function login(nameOf: string, username: unknown, secretOf: string, password: unknown): string {
  const parts = Object.entries({ [nameOf]: text(username), [secretOf]: text(password) })
  return parts
    .filter(([, value]) => value !== '')
    .map(([key, value]) => `${key}=${encodeURIComponent(value)}`)
    .join('&')
}

/** Whether TLS is on. What it is verified with cannot be carried over, so it must be what everybody has. */
function isSecure(tls: unknown, host?: unknown): boolean {
  if (tls === undefined || tls === null || tls === false) return false
  if (isFields(tls)) {
    const { servername } = tls
    if (servername != null && servername !== host) throw cannotRead('its server goes by another name in TLS')
    const own = ['ca', 'cert', 'key', 'pfx', 'checkServerIdentity', 'secureContext'].find((name) => tls[name] != null)
    if (own !== undefined) {
      const instead = 'give a URL instead, as in rediss://host?ca=/file&cert=/file&key=/file'
      throw cannotRead(`its TLS option ${own} cannot be carried over; ${instead}`)
    }
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
