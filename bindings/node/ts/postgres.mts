// The same for `import`.

export { CLAIM, CLAIM_TABLE, LOCK, TRY_LOCK, lockId } from './postgres.js'
