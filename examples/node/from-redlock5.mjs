// From redlock 5: another name is imported, and the rest stays. `from-redlock5.mjs [URL]`
import { Redis } from 'ioredis'
import Redlock from 'polylock/redlock' // was: from 'redlock'

const client = new Redis(process.argv[2] ?? 'redis://localhost:6379')
const redlock = new Redlock([client], {
  retryCount: 10,
  retryDelay: 200,
  automaticExtensionThreshold: 500,
})
redlock.on('error', (error) => console.error(error))

await redlock.using(['{account}:1', '{account}:2'], 5000, async (signal) => {
  if (signal.aborted) throw signal.error
  console.log('both are ours')
})
const lock = await redlock.acquire(['{account}:1'], 5000)
await lock.release()
await redlock.quit()
