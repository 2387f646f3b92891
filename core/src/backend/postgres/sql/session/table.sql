-- The fencing counters of session mode. polylock makes the table on demand if it may create tables; who migrates by
-- hand runs this file (another name or schema: ?table=schema.name in the URL) and grants SELECT, INSERT and UPDATE.
--
-- One row per name, never deleted; it does not say whether the name is locked: pg_locks does.
CREATE TABLE IF NOT EXISTS polylock_session (
    key          text COLLATE "C" PRIMARY KEY,
    token        bigint  NOT NULL,               -- fencing token of the last grant; at least its time in us since 1970
    kind         text,                           -- how it was last held: exclusive, shared or permit
    lock_id      bigint,                         -- id of the advisory lock
    owner        text,                           -- owner token of the last holder
    sharers      jsonb,                          -- those who share it: by owner token as in the lease table, and backend
    backend      integer,                        -- the process of the server that served it
    acquired_at  timestamptz,
    expires_at   timestamptz,                    -- until when the holder means to hold it; the session is what counts
    host         text,                           -- where that holder runs, for people
    pid          integer,
    label        text,
    writer_until timestamptz,                    -- somebody waits to hold it alone: nobody new shares it until then
    wanted       boolean NOT NULL DEFAULT false  -- somebody waits for a NOTIFY when it is released
) WITH (fillfactor = 70);
