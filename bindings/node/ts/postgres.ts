// SQL for a transaction of your own in PostgreSQL: the lock, or the check of the fencing token, together with the data.
//
// This needs no connection of polylock's: run the statements on yours, before what they are to protect.

import { createHash } from 'node:crypto'

/**
 * Waits for the advisory lock of a name, and holds it until the transaction ends; $1 is its {@link lockId}.
 *
 * It is the lock of session mode (`?mode=session`): leases there and transactions exclude each other. The wait keeps the
 * snapshot of the transaction; `lock_timeout` bounds it.
 */
export const LOCK = 'SELECT pg_advisory_xact_lock($1::bigint)'

/** As {@link LOCK}, but does not wait: one row that says whether it was free. */
export const TRY_LOCK = 'SELECT pg_try_advisory_xact_lock($1::bigint)'

/**
 * Claims a resource ($1) for the holder with a fencing token ($2), of a lease of whichever backend.
 *
 * It is an error (SQLSTATE 22P02), after which the transaction cannot commit, if a holder with a greater token has
 * claimed it. Needs {@link CLAIM_TABLE}.
 */
export const CLAIM = `\
WITH claimed AS (
    INSERT INTO polylock_claim AS c (resource, token) VALUES ($1::text, $2::bigint)
    ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE c.token <= excluded.token
    RETURNING token
)
SELECT CASE (SELECT count(*) FROM claimed) WHEN 1 THEN $2::bigint
    ELSE ('polylock: stale fencing token ' || $2::text || ' of ' || $1::text
          || repeat(' ', (SELECT count(*) FROM claimed)::integer))::bigint END AS token
`

/** Makes the table of the claims, if it is missing. */
export const CLAIM_TABLE = `\
CREATE TABLE IF NOT EXISTS polylock_claim (
    resource text COLLATE "C" PRIMARY KEY,
    token    bigint NOT NULL
);
`

/**
 * The table of lease mode, for who migrates by hand: otherwise the first use makes it.
 *
 * The user of the locks needs SELECT, INSERT and UPDATE on it. For another name or schema, change it here and say
 * `?table=schema.name` in the URL.
 */
export const LEASE_TABLE = `\
CREATE TABLE IF NOT EXISTS polylock_lease (
    key          text COLLATE "C" PRIMARY KEY,
    token        bigint      NOT NULL,
    owner        text,
    sharers      jsonb,
    expires_at   timestamptz NOT NULL,
    acquired_at  timestamptz,
    host         text,
    pid          integer,
    label        text,
    writer_until timestamptz,
    wanted       boolean     NOT NULL DEFAULT false
) WITH (fillfactor = 70);
`

/** The same of session mode (`?mode=session`). */
export const SESSION_TABLE = `\
CREATE TABLE IF NOT EXISTS polylock_session (
    key          text COLLATE "C" PRIMARY KEY,
    token        bigint  NOT NULL,
    kind         text,
    lock_id      bigint,
    owner        text,
    sharers      jsonb,
    backend      integer,
    acquired_at  timestamptz,
    expires_at   timestamptz,
    host         text,
    pid          integer,
    label        text,
    writer_until timestamptz,
    wanted       boolean NOT NULL DEFAULT false
) WITH (fillfactor = 70);
`

/**
 * The id of the advisory lock for `name`: the first 8 bytes, in network order, of the SHA-256 of "polylock", a zero byte
 * and the name, as a signed number.
 */
export function lockId(name: string): bigint {
  return createHash('sha256').update('polylock\0').update(name).digest().readBigInt64BE(0)
}
