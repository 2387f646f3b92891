-- Which fencing tokens have been here: for claim.sql. A row may be deleted once no holder older than it can come back.
CREATE TABLE IF NOT EXISTS polylock_claim (
    resource text COLLATE "C" PRIMARY KEY,
    token    bigint NOT NULL
);
