-- Restores from backup, our own and those of peers.

-- The peer was restored: up to this stream position it is told everything again, its own users' events included. NULL: nothing is owed.
ALTER TABLE peers ADD COLUMN returns_to INTEGER;

-- Lives of peers' databases before their restores: bundles from them come too late.
CREATE TABLE retired_incarnations (
    server      TEXT    NOT NULL,
    incarnation BLOB    NOT NULL,
    retired     INTEGER NOT NULL,              -- when the card of the next one was taken (ms)
    PRIMARY KEY (server, incarnation)
) WITHOUT ROWID;
