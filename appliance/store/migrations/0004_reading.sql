-- What members have read, how events relate, and the names under which rooms are found.

-- State events of a room by what they set, oldest first.
CREATE INDEX events_by_state_key ON events (room, kind, state_key, position)
    WHERE state_key IS NOT NULL AND position IS NOT NULL;

-- The newest receipt of each user, kind and thread.
CREATE TABLE receipts (
    room           INTEGER NOT NULL,
    user_id        TEXT    NOT NULL,
    -- m.read or m.read.private.
    kind           TEXT    NOT NULL,
    -- The thread's root or 'main'; empty for a receipt of the whole room.
    thread         TEXT    NOT NULL,
    event_id       TEXT    NOT NULL,
    -- Stream position of that event: a receipt only moves forward.
    read_to        INTEGER NOT NULL,
    -- When it was sent, in milliseconds since the epoch.
    ts             INTEGER NOT NULL,
    -- Stream position of the receipt itself.
    position       INTEGER NOT NULL,
    PRIMARY KEY (room, user_id, kind, thread)
) WITHOUT ROWID;
CREATE INDEX receipts_by_position ON receipts (room, position);

-- Which event relates to which, for events that clients can see.
CREATE TABLE relations (
    room     INTEGER NOT NULL,
    target   TEXT    NOT NULL,
    position INTEGER NOT NULL,
    event_id TEXT    NOT NULL,
    rel_type TEXT    NOT NULL,
    kind     TEXT    NOT NULL,
    sender   TEXT    NOT NULL,
    PRIMARY KEY (room, target, position)
) WITHOUT ROWID;
CREATE INDEX relations_by_position ON relations (room, position);

CREATE TABLE aliases (
    alias   TEXT    NOT NULL PRIMARY KEY,
    room    INTEGER NOT NULL,
    -- Who made it.
    creator TEXT    NOT NULL
) WITHOUT ROWID;
CREATE INDEX aliases_by_room ON aliases (room);

-- Rooms that the directory shows.
CREATE TABLE published_rooms (
    room INTEGER NOT NULL PRIMARY KEY
);
