-- Keys of this box, of which the token holds the private halves, and key documents of other servers.

CREATE TABLE own_keys (
    -- The token's stable name of the key.
    name       TEXT    NOT NULL PRIMARY KEY,
    role       TEXT    NOT NULL,
    algorithm  TEXT    NOT NULL,
    public     BLOB    NOT NULL,
    created    INTEGER NOT NULL,
    -- When it was replaced (ms); NULL while it is in use.
    retired    INTEGER
);

CREATE TABLE server_keys (
    server TEXT    NOT NULL PRIMARY KEY,
    -- When the document was made (ms), as the bundle that brought it says.
    made   INTEGER NOT NULL,
    json   TEXT    NOT NULL
);
