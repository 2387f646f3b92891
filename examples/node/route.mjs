// A route handler as of Next.js (app/checkout/route.js): Web requests and responses. `route.mjs [URL]` calls it.
import { AcquireTimeoutError, connect } from 'polylock'

/**
 * One manager a process, also where the module is loaded again and again as it is edited.
 *
 * @type {{ locks?: ReturnType<typeof connect> }}
 */
const kept = /** @type {object} */ (globalThis)
const locks = (kept.locks ??= connect(process.argv[2] ?? 'redis://localhost:6379'))

/** @param {Request} request */
export async function POST(request) {
  const { cart } = /** @type {{ cart: string }} */ (await request.json())
  try {
    // Aborted when the browser goes away.
    return await locks.using(`cart:${cart}`, { ttl: 5_000, wait: 1_000, signal: request.signal }, async (lease) =>
      Response.json({ cart, order: String(lease.fencingToken) }),
    )
  } catch (error) {
    if (error instanceof AcquireTimeoutError) return new Response('being checked out', { status: 409 })
    throw error
  }
}

const body = JSON.stringify({ cart: 'c1' })
const response = await POST(new Request('http://localhost/checkout', { method: 'POST', body }))
console.log(response.status, await response.text())
await locks.close()
