"""SQL for a transaction of your own in PostgreSQL: the lock, or the check of the fencing token, beside the data.

This needs no connection of polylock's: run the statements on yours, before what they are to protect. They are written
for psycopg; for asyncpg and others, put its placeholders in the place of `%(name)s`.

    with connection.transaction():
        connection.execute(postgres.LOCK, {"id": postgres.lock_id("account:1")})
        connection.execute(postgres.CLAIM, {"resource": "invoice:42", "token": lease.fencing_token})
        connection.execute("UPDATE invoice SET paid = true WHERE id = 42")
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["CLAIM", "CLAIM_TABLE", "LEASE_TABLE", "LOCK", "SESSION_TABLE", "TRY_LOCK", "lock_id"]

LOCK: Final = "SELECT pg_advisory_xact_lock(%(id)s::bigint)"
"""Waits for the advisory lock of a name, and holds it until the transaction ends; `id` is its `lock_id`.

It is the lock of session mode (`?mode=session`): leases there and transactions exclude each other. The wait keeps the
snapshot of the transaction; `lock_timeout` bounds it.
"""

TRY_LOCK: Final = "SELECT pg_try_advisory_xact_lock(%(id)s::bigint)"
"""As `LOCK`, but does not wait: one row that says whether it was free."""

CLAIM: Final = """\
WITH claimed AS (
    INSERT INTO polylock_claim AS c (resource, token) VALUES (%(resource)s::text, %(token)s::bigint)
    ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE c.token <= excluded.token
    RETURNING token
)
SELECT CASE (SELECT count(*) FROM claimed) WHEN 1 THEN %(token)s::bigint
    ELSE ('polylock: stale fencing token ' || %(token)s::text || ' of ' || %(resource)s::text
          || repeat(' ', (SELECT count(*) FROM claimed)::integer))::bigint END AS token
"""
"""Claims `resource` for the holder with the fencing token `token`, of a lease of whichever backend.

It is an error (SQLSTATE 22P02, psycopg's `InvalidTextRepresentation`), after which the transaction cannot commit, if
a holder with a greater token has claimed it. Needs `CLAIM_TABLE`.
"""

CLAIM_TABLE: Final = """\
CREATE TABLE IF NOT EXISTS polylock_claim (
    resource text COLLATE "C" PRIMARY KEY,
    token    bigint NOT NULL
);
"""
"""Makes the table of the claims, if it is missing."""

LEASE_TABLE: Final = """\
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
"""
"""The table of lease mode, for who migrates by hand: otherwise the first use makes it.

The user of the locks needs SELECT, INSERT and UPDATE on it. For another name or schema, change it here and say
`?table=schema.name` in the URL.
"""

SESSION_TABLE: Final = """\
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
"""
"""The same of session mode (`?mode=session`)."""


def lock_id(name: str) -> int:
    """Returns the id of the advisory lock for `name`.

    It is the first 8 bytes, in network order, of the SHA-256 of "polylock", a zero byte and the name, as a signed
    number.
    """
    digest = hashlib.sha256(b"polylock\0" + name.encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
