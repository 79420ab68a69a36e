-- Rosters, activation codes, and the log of administrative commands. Times are milliseconds since the epoch.

-- Accounts that rosters made, as the last roster described them (JSON). Whether one is locked stands in users.
CREATE TABLE roster_accounts (
    user_id TEXT    NOT NULL PRIMARY KEY REFERENCES users (user_id),
    account TEXT    NOT NULL,
    serial  INTEGER NOT NULL                  -- of the roster that made it
) WITHOUT ROWID;

-- Rosters whose import was finished.
CREATE TABLE rosters (
    serial   INTEGER NOT NULL PRIMARY KEY,
    subject  BLOB    NOT NULL,                -- SHA-256 of the signed statement
    head     TEXT    NOT NULL,                -- JSON
    signer   TEXT    NOT NULL,
    imported INTEGER NOT NULL
);

-- Codes that were given out and not used. At most one per account.
CREATE TABLE activation_codes (
    hash    BLOB    NOT NULL PRIMARY KEY,
    user_id TEXT    NOT NULL UNIQUE REFERENCES users (user_id),
    expires INTEGER NOT NULL
) WITHOUT ROWID;

-- One row per administrative command, each with the hash of the one before. Never updated, never deleted.
CREATE TABLE audit_log (
    id        INTEGER NOT NULL PRIMARY KEY,
    at        INTEGER NOT NULL,
    actor     TEXT    NOT NULL,
    evidence  TEXT    NOT NULL,
    approvals TEXT    NOT NULL,               -- JSON
    action    TEXT    NOT NULL,
    subject   TEXT    NOT NULL,
    details   TEXT    NOT NULL,               -- JSON
    previous  BLOB    NOT NULL,
    hash      BLOB    NOT NULL
);
