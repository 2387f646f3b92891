-- The lease table. polylock makes it on demand if it may create tables; who migrates by hand runs this file
-- (another name or schema: ?table=schema.name in the URL) and grants SELECT, INSERT and UPDATE.
--
-- One row per name, never deleted: it holds the fencing counter. An old row may be deleted while nobody uses its name, because
-- a new one counts on from the server's clock.
CREATE TABLE IF NOT EXISTS polylock_lease (
    key          text COLLATE "C" PRIMARY KEY,
    token        bigint      NOT NULL,               -- fencing token of the last grant; at least its time in us since 1970
    owner        text,                               -- owner token of who holds it alone; NULL: free; or 'shared', 'permit':
    sharers      jsonb,                              -- those who do, by owner token: until, since (us since 1970), token,
                                                     -- host, pid, label
    expires_at   timestamptz NOT NULL,               -- held by nobody from then on
    acquired_at  timestamptz,
    host         text,                               -- where the holder runs, for people
    pid          integer,
    label        text,
    writer_until timestamptz,                        -- somebody waits to hold it alone: nobody new shares it until then
    wanted       boolean     NOT NULL DEFAULT false  -- somebody waits for a NOTIFY when it is released
) WITH (fillfactor = 70);                            -- room for updates in place: no index is on what changes
