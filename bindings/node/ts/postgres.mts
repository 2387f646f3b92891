// The same for `import`.

export { CLAIM, CLAIM_TABLE, LEASE_TABLE, LOCK, SESSION_TABLE, TRY_LOCK, lockId } from './postgres.js'
