// A worker as of BullMQ: jobs of one customer run one after the other, whatever worker gets them; those of others go on.
// `worker.mjs [URL]`
import { AcquireTimeoutError, connect } from 'polylock'

const locks = connect(process.argv[2] ?? 'redis://localhost:6379')

/**
 * With BullMQ: `new Worker('mails', process, { connection, concurrency: 50 })`.
 *
 * @param {{ id: string, data: { customer: string } }} job
 */
async function work(job) {
  try {
    return await locks.using(
      `customer:${job.data.customer}`,
      { ttl: 15_000, wait: 60_000, label: job.id },
      async (lease) => {
        await new Promise((resolve) => setTimeout(resolve, 20))
        lease.signal.throwIfAborted() // lost: what was done may not be written any more
        return `${job.id} for ${job.data.customer}`
      },
    )
  } catch (error) {
    // The queue tries a job again that throws.
    if (error instanceof AcquireTimeoutError)
      throw new Error(`customer ${job.data.customer} is busy`, {
        cause: error,
      })
    throw error
  }
}

const jobs = ['ann', 'ben', 'ann', 'ann', 'ben'].map((customer, index) => ({
  id: `job-${index + 1}`,
  data: { customer },
}))
for (const done of await Promise.all(jobs.map(work))) console.log(done)
await locks.close()
