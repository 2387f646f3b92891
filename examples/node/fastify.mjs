// A report that is made once at a time; who comes meanwhile is told so: `fastify.mjs [URL]`, PORT in the environment.
import Fastify from 'fastify'
import { connect } from 'polylock'

const locks = connect(process.argv[2] ?? 'redis://localhost:6379')
const app = Fastify()
app.addHook('onClose', () => locks.close())

app.post('/reports/daily', async (_request, reply) => {
  const lease = await locks.tryAcquire('report:daily', {
    ttl: 30_000,
    maxHold: 600_000,
  })
  if (lease === null) {
    const holder = await locks.inspect('report:daily')
    return reply.code(409).send({ runningSince: holder?.since ?? null })
  }
  try {
    await new Promise((resolve) => setTimeout(resolve, 200)) // the work
    return { token: String(lease.fencingToken) }
  } finally {
    await lease.release()
  }
})

const address = await app.listen({
  port: Number(process.env.PORT ?? 0),
  host: '127.0.0.1',
})
console.log(new URL(address).port)
process.once('SIGTERM', () => app.close())
