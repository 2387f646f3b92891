// From redlock 4: another name is required, and the rest stays. `from-redlock4.cjs [URL]`
const { Redis } = require('ioredis')
const Redlock = require('polylock/redlock') // was: require('redlock')

const client = new Redis(process.argv[2] ?? 'redis://localhost:6379')
const redlock = new Redlock([client], {
  driftFactor: 0.01,
  retryCount: 10,
  retryDelay: 200,
  retryJitter: 200,
})
redlock.on('clientError', (error) => console.error('a redis error has occurred:', error))

redlock
  .lock('locks:account:322456', 1000)
  .then((lock) => lock.extend(1000))
  .then((lock) => lock.unlock())
  .then(() => console.log('unlocked'))
  .then(() => redlock.quit())
