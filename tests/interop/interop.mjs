// Other libraries for Node and ours on the same keys: neither gets in while the other holds, and each gets in after.
//
// `node interop.mjs`, with polylock and the packages of package.json beside it, in the environment of with_servers.py.

import { createRequire } from 'node:module'
import Redis from 'ioredis'
import semaphores from 'redis-semaphore'
import { IoredisAdapter, createLock, createRedlock } from 'redlock-universal'
import { connect } from 'polylock'

const { Mutex, RedlockMutex } = semaphores
const require = createRequire(import.meta.url)
const Redlock4 = require('redlock4')
const Redlock5 = require('redlock5').default

const one = [process.env.POLYLOCK_TEST_REDIS]
const five = process.env.POLYLOCK_TEST_REDLOCK.split(',')
const TTL = 20_000

// What one library does on the servers that `clients` are connected to: `hold` answers a function that releases, or
// undefined if somebody else holds.
function redlock4(clients) {
    const redlock = new Redlock4(clients, { retryCount: 0 })
    redlock.on('clientError', () => {})
    return async (name, ttl) => {
        try {
            const lock = await redlock.lock(name, ttl)
            return () => lock.unlock()
        } catch (error) {
            if (error.name === 'LockError') return undefined
            throw error
        }
    }
}

function redlock5(clients) {
    const redlock = new Redlock5(clients, { retryCount: 0 })
    return async (name, ttl) => {
        try {
            const lock = await redlock.acquire([name], ttl)
            return () => lock.release()
        } catch (error) {
            if (error.name === 'ExecutionError') return undefined
            throw error
        }
    }
}

function universal(clients) {
    const adapters = clients.map((client) => new IoredisAdapter(client))
    return async (key, ttl) => {
        const options = { key, ttl, retryAttempts: 0, retryDelay: 1 }
        const lock =
            adapters.length === 1
                ? createLock({ adapter: adapters[0], ...options })
                : createRedlock({ adapters, ...options })
        let handle
        try {
            handle = await lock.acquire()
        } catch (error) {
            if (error.name === 'LockAcquisitionError') return undefined
            throw error
        }
        return () => lock.release(handle)
    }
}

function semaphore(clients) {
    return async (name, ttl) => {
        const options = { lockTimeout: ttl, acquireTimeout: 1000, acquireAttemptsLimit: 1, refreshInterval: 0 }
        const mutex =
            clients.length === 1 ? new Mutex(clients[0], name, options) : new RedlockMutex(clients, name, options)
        return (await mutex.tryAcquire()) ? () => mutex.release() : undefined
    }
}

const PEERS = [
    { peer: 'redlock 4', library: redlock4, prefix: '' },
    { peer: 'redlock 5', library: redlock5, prefix: '' },
    { peer: 'redlock-universal', library: universal, prefix: '' },
    { peer: 'redis-semaphore', library: semaphore, prefix: 'mutex:' },
]

function check(holds, what) {
    if (!holds) throw new Error(what)
}

// What is asked of each pair, by what it shows.
const CASES = {
    async 'theirs keeps ours out'(locks, hold, name) {
        const release = await hold(name, TTL)
        check(release, 'theirs was not granted')
        check((await locks.tryAcquire(name, { ttl: TTL })) === null, 'two hold it')
        await release()
        const lease = await locks.tryAcquire(name, { ttl: TTL })
        check(lease !== null, 'not free after theirs')
        await lease.release()
    },
    async 'ours keeps theirs out'(locks, hold, name) {
        const lease = await locks.tryAcquire(name, { ttl: TTL })
        check((await hold(name, TTL)) === undefined, 'two hold it')
        check(lease.isHeld, 'theirs took ours away')
        await lease.extend()
        check((await hold(name, TTL)) === undefined, 'two hold it, after an extension')
        check((await lease.release()) === 'released', 'theirs took ours away')
        const release = await hold(name, TTL)
        check(release, 'not free after ours')
        await release()
    },
    async 'ours waits for theirs'(locks, hold, name) {
        const release = await hold(name, TTL)
        const waiting = locks.acquire(name, { ttl: TTL, wait: 30_000 })
        await new Promise((resolve) => setTimeout(resolve, 100))
        await release()
        await (await waiting).release()
    },
    async 'ours comes after theirs has expired, and not before'(locks, hold, name) {
        const began = performance.now()
        check(await hold(name, 1000), 'theirs was not granted')
        const lease = await locks.acquire(name, { ttl: TTL, wait: 30_000 })
        check(performance.now() - began >= 1000, 'ours came before theirs had expired')
        await lease.release()
    },
    async 'theirs comes after ours has expired'(locks, hold, name) {
        const lease = await locks.tryAcquire(name, { ttl: 500, autoExtend: false })
        check(lease !== null, 'ours was not granted')
        const began = performance.now()
        let release
        while ((release = await hold(name, TTL)) === undefined) {
            check(performance.now() - began < 30_000, 'never free after ours')
        }
        check(!lease.isHeld, 'two hold it')
        await release()
    },
}

let [passed, failed] = [0, 0]
for (const [where, urls] of [
    ['one server', one],
    ['five servers', five],
]) {
    const clients = urls.map((url) => new Redis(url))
    for (const { peer, library, prefix } of PEERS) {
        const locks = connect(urls, { prefix })
        for (const [what, run] of Object.entries(CASES)) {
            const name = `interop:${process.pid}:${passed + failed}`
            try {
                await run(locks, library(clients), name)
                passed += 1
            } catch (error) {
                failed += 1
                console.log(`failed: ${peer}, ${where}: ${what}: ${error.stack}`)
            }
        }
        await locks.close()
    }
    for (const client of clients) client.disconnect()
}
console.log(`interop in Node: ${passed} passed, ${failed} failed`)
process.exit(failed === 0 ? 0 : 1)
