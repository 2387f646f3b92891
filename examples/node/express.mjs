// One charge at a time for each invoice, whichever server of many gets the request: `express.mjs [URL]`, PORT in the environment.
import express from 'express'
import { AcquireTimeoutError, connect } from 'polylock'

const locks = connect(process.argv[2] ?? 'redis://localhost:6379')
const app = express()

app.post('/invoices/:id/charge', async (request, response, next) => {
  try {
    const gone = new AbortController()
    response.on('close', () => gone.abort()) // who has hung up is not kept in line
    const options = { ttl: 10_000, wait: 2_000, signal: gone.signal }
    const token = await locks.using(`invoice:${request.params.id}`, options, async (lease) => {
      await charge(lease.signal)
      return lease.fencingToken
    })
    response.json({ charged: request.params.id, token: String(token) })
  } catch (error) {
    if (error instanceof AcquireTimeoutError) response.status(409).json({ busy: request.params.id })
    else next(error)
  }
})

/** @param {AbortSignal} signal aborted if the lease is lost */
async function charge(signal) {
  signal.throwIfAborted()
  await new Promise((resolve) => setTimeout(resolve, 100))
}

const server = app.listen(Number(process.env.PORT ?? 0), '127.0.0.1', () => {
  const address = server.address()
  console.log(typeof address === 'object' ? address?.port : address)
})
process.once('SIGTERM', () => server.close(() => locks.close()))
