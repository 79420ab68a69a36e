-- What the box is, and where its stream stands.

-- Single values: server_name, incarnation, last_time (ms).
CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
);

-- The position of the newest committed change that /sync can show.
CREATE TABLE stream (
    only_row INTEGER NOT NULL PRIMARY KEY CHECK (only_row = 1),
    position INTEGER NOT NULL
);
INSERT INTO stream (only_row, position) VALUES (1, 0);
