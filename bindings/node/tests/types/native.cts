// The same types for `require`.

import polylock = require('polylock')

const locks: polylock.LockManager = polylock.connect('memory:')
const isOurs = (error: unknown): error is polylock.PolylockError => error instanceof polylock.PolylockError

export = { locks, isOurs }
