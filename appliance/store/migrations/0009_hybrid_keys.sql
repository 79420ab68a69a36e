-- X-Wing keys (X25519 and ML-KEM-768), one for each courier encryption key.
CREATE TABLE hybrid_keys (
    key     TEXT NOT NULL PRIMARY KEY,   -- own_keys.name of the courier encryption key
    public  BLOB NOT NULL,
    storage TEXT NOT NULL,               -- the token's key that wraps the seed, and nothing else
    wrapped BLOB NOT NULL
) WITHOUT ROWID;
