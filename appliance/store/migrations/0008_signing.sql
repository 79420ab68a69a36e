-- What waits for a signature, what the audit log has yet to tell of signatures, and the token's word for that log.

-- Local events of the room after signed_to, and since when the oldest of them waits (ms; NULL if none waits, or the room is not exposed).
ALTER TABLE rooms ADD COLUMN unsigned INTEGER NOT NULL DEFAULT 0;
ALTER TABLE rooms ADD COLUMN unsigned_since INTEGER;
UPDATE rooms SET unsigned = (
    SELECT count(*) FROM events e WHERE e.room = rooms.nid AND e.position > rooms.signed_to AND e.local = 1);
UPDATE rooms SET unsigned_since = (
    SELECT min(e.origin_server_ts) FROM events e WHERE e.room = rooms.nid AND e.position > rooms.signed_to AND e.local = 1)
WHERE exposed = 1 AND unsigned > 0;
-- Only rooms that wait are in it, the longest waiting first.
CREATE INDEX rooms_that_wait ON rooms (unsigned_since, unsigned, room_id) WHERE exposed = 1 AND unsigned > 0;

-- Signatures of each key that no row of the audit log tells of yet: their Merkle tree in the making.
CREATE TABLE signing_runs (
    key    TEXT    NOT NULL PRIMARY KEY,      -- own_keys.name
    events INTEGER NOT NULL,
    roots  BLOB    NOT NULL,
    began  INTEGER NOT NULL,                  -- ms
    ended  INTEGER NOT NULL
);
CREATE TABLE signing_run_rooms (
    key  TEXT    NOT NULL,
    room INTEGER NOT NULL,                    -- rooms.nid
    PRIMARY KEY (key, room)
) WITHOUT ROWID;

-- What the token signed of the audit log.
CREATE TABLE audit_checkpoints (
    tip        INTEGER NOT NULL PRIMARY KEY,  -- audit_log.id
    made       INTEGER NOT NULL,              -- ms
    checkpoint BLOB    NOT NULL               -- COSE_Sign1
);

-- When the private half of a key was destroyed, lost, or left behind in another token (ms). Its public half stays: what it signed must be verified.
ALTER TABLE own_keys ADD COLUMN destroyed INTEGER;
-- When the card was installed (ms): a peer that acknowledged a later bundle has it.
ALTER TABLE own_card ADD COLUMN installed INTEGER NOT NULL DEFAULT 0;
