-- Enclaves that this one is paired with, and where the exchange of bundles with each stands.

CREATE TABLE own_card (
    only_row INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    card     BLOB    NOT NULL
);

CREATE TABLE peers (
    server        TEXT    NOT NULL PRIMARY KEY,
    card          BLOB    NOT NULL,
    -- When an officer confirmed the fingerprint (ms).
    paired        INTEGER NOT NULL,
    -- Bundles to the peer: the last one made, and the last one that it acknowledged.
    sent_seq      INTEGER NOT NULL DEFAULT 0,
    sent_manifest BLOB,
    acked_seq     INTEGER NOT NULL DEFAULT 0,
    -- What the acknowledged bundles told: stream position, numbers of one-time keys and claims, time (ms).
    acked_position INTEGER NOT NULL DEFAULT 0,
    acked_pool     INTEGER NOT NULL DEFAULT 0,
    acked_claims   INTEGER NOT NULL DEFAULT 0,
    acked_time     INTEGER NOT NULL DEFAULT 0,
    -- Bundles of the peer: the last one imported, in which life of its database, and when (ms).
    incarnation   BLOB,
    received_seq  INTEGER NOT NULL DEFAULT 0,
    received_manifest BLOB,
    received_time INTEGER
);

-- Bundles that were made and are not acknowledged yet: what each of them tells.
CREATE TABLE sent_bundles (
    server   TEXT    NOT NULL,
    seq      INTEGER NOT NULL,
    position INTEGER NOT NULL,
    pool     INTEGER NOT NULL,
    claims   INTEGER NOT NULL,
    created  INTEGER NOT NULL,
    PRIMARY KEY (server, seq)
);

-- Rooms that a peer has, and the event at which it takes each over. Until a bundle that carried the snapshot is acknowledged
-- (bundle greater than peers.acked_seq), the next one carries it again. anchor is NULL if the peer told us of the room.
CREATE TABLE peer_rooms (
    server   TEXT    NOT NULL,
    room     INTEGER NOT NULL,
    anchor   TEXT,
    bundle   INTEGER NOT NULL,
    PRIMARY KEY (server, room)
) WITHOUT ROWID;

-- Bundles of peers whose import has begun: how far it came, and what became of the events so far.
CREATE TABLE imports (
    server   TEXT    NOT NULL,
    seq      INTEGER NOT NULL,
    manifest BLOB    NOT NULL,
    section  INTEGER NOT NULL DEFAULT 0,
    record   INTEGER NOT NULL DEFAULT 0,
    done     INTEGER NOT NULL DEFAULT 0,
    report   TEXT    NOT NULL DEFAULT '{}',
    PRIMARY KEY (server, seq)
);

-- Events from peers that wait for other events, for keys, or for their time.
CREATE TABLE waiting_events (
    nid     INTEGER NOT NULL PRIMARY KEY,
    room_id TEXT    NOT NULL,
    sha256  BLOB    NOT NULL UNIQUE,
    since   INTEGER NOT NULL,
    json    BLOB    NOT NULL
);
CREATE INDEX waiting_events_by_room ON waiting_events (room_id, nid);
