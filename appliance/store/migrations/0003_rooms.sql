-- Rooms, their events and their states.

CREATE TABLE rooms (
    nid         INTEGER NOT NULL PRIMARY KEY,
    room_id     TEXT    NOT NULL UNIQUE,
    version     TEXT    NOT NULL,
    -- The current state (states.nid).
    state       INTEGER NOT NULL,
    -- Forward extremities: a JSON array of event ids.
    extremities TEXT    NOT NULL,
    -- Greatest depth among the extremities.
    depth       INTEGER NOT NULL,
    -- Stream position of the newest change that members can see.
    newest      INTEGER NOT NULL,
    -- 1 once a user of another server was invited or joined: then its local events must be signed.
    exposed     INTEGER NOT NULL DEFAULT 0,
    -- HMAC chain over the ids of local events: its newest value, and its value at signed_to.
    mac         BLOB    NOT NULL DEFAULT x'',
    signed_mac  BLOB    NOT NULL DEFAULT x'',
    -- Local events up to this stream position have signatures.
    signed_to   INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE events (
    nid              INTEGER NOT NULL PRIMARY KEY,
    event_id         TEXT    NOT NULL UNIQUE,
    room             INTEGER NOT NULL,
    -- Arrival order; negative for history from before the join; NULL for an outlier or what clients never see.
    position         INTEGER,
    -- 0 accepted, 1 soft-failed, 2 rejected.
    status           INTEGER NOT NULL,
    -- 1: kept redacted because its content hash did not match.
    gutted           INTEGER NOT NULL,
    -- 1: sent by a user of this server.
    local            INTEGER NOT NULL,
    depth            INTEGER NOT NULL,
    origin_server_ts INTEGER NOT NULL,
    sender           TEXT    NOT NULL,
    kind             TEXT    NOT NULL,
    state_key        TEXT,
    -- Room states before and after it (states.nid); NULL for an outlier.
    state_before     INTEGER,
    state_after      INTEGER,
    -- The redaction that applied to it.
    redacted_by      TEXT,
    -- Device and transaction id of the request that sent it.
    device_id        TEXT,
    txn_id           TEXT,
    -- Canonical JSON without signatures and unsigned.
    json             TEXT    NOT NULL
);
CREATE UNIQUE INDEX events_by_position ON events (room, position) WHERE position IS NOT NULL;
CREATE UNIQUE INDEX events_by_transaction ON events (sender, device_id, txn_id) WHERE txn_id IS NOT NULL;

CREATE TABLE event_signatures (
    event     INTEGER NOT NULL,
    server    TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    signature BLOB    NOT NULL,
    PRIMARY KEY (event, server, key_id)
) WITHOUT ROWID;

-- A room state is a full copy (parent NULL) or what differs from its parent.
CREATE TABLE states (
    nid     INTEGER NOT NULL PRIMARY KEY,
    room    INTEGER NOT NULL,
    parent  INTEGER,
    -- Entries written since the last full copy, and entries of that copy.
    deltas  INTEGER NOT NULL,
    copied  INTEGER NOT NULL
);

CREATE TABLE state_entries (
    state     INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    state_key TEXT    NOT NULL,
    -- NULL: the entry of the parent is gone.
    event_id  TEXT,
    PRIMARY KEY (state, kind, state_key)
) WITHOUT ROWID;

-- The current state of each room, and the stream position at which each entry became current.
CREATE TABLE current_state (
    room      INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    state_key TEXT    NOT NULL,
    event_id  TEXT    NOT NULL,
    position  INTEGER NOT NULL,
    PRIMARY KEY (room, kind, state_key)
) WITHOUT ROWID;
CREATE INDEX current_state_by_position ON current_state (room, position);

-- The current membership of users, taken from current_state.
CREATE TABLE memberships (
    user_id    TEXT    NOT NULL,
    room       INTEGER NOT NULL,
    membership TEXT    NOT NULL,
    event_id   TEXT    NOT NULL,
    position   INTEGER NOT NULL,
    -- 1: the user has forgotten the room.
    forgotten  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, room)
) WITHOUT ROWID;
CREATE INDEX memberships_by_room ON memberships (room, membership, user_id);

-- Redactions by their target, also of targets that are not here yet.
CREATE TABLE redactions (
    target    TEXT NOT NULL,
    redaction TEXT NOT NULL,
    PRIMARY KEY (target, redaction)
) WITHOUT ROWID;
