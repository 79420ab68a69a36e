-- Accounts, their sessions and devices, encryption keys, and all else that belongs to a user rather than to a room.
-- Times are milliseconds since the epoch; positions are those of the stream that /sync shows.

CREATE TABLE users (
    user_id       TEXT    NOT NULL PRIMARY KEY,
    password_hash TEXT,                        -- PHC string; NULL: cannot log in with a password
    locked        INTEGER NOT NULL DEFAULT 0,
    deactivated   INTEGER NOT NULL DEFAULT 0,
    created       INTEGER NOT NULL
);

CREATE TABLE devices (
    user_id      TEXT    NOT NULL REFERENCES users (user_id),
    device_id    TEXT    NOT NULL,
    display_name TEXT,
    created      INTEGER NOT NULL,
    last_seen    INTEGER,
    last_address TEXT,
    generation   INTEGER NOT NULL DEFAULT 0,   -- newest pair of tokens that was used
    next_key     INTEGER NOT NULL DEFAULT 1,   -- number of the next one-time key, in upload order
    PRIMARY KEY (user_id, device_id)
) WITHOUT ROWID;

-- Tokens are kept as SHA-256. A refresh makes a pair of the next generation; its first use ends the older ones.
CREATE TABLE access_tokens (
    hash       BLOB    NOT NULL PRIMARY KEY,
    user_id    TEXT    NOT NULL,
    device_id  TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    expires    INTEGER,
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX access_tokens_by_device ON access_tokens (user_id, device_id);

CREATE TABLE refresh_tokens (
    hash       BLOB    NOT NULL PRIMARY KEY,
    user_id    TEXT    NOT NULL,
    device_id  TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    FOREIGN KEY (user_id, device_id) REFERENCES devices (user_id, device_id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX refresh_tokens_by_device ON refresh_tokens (user_id, device_id);

-- One value of a profile, of local users and of those that peers told us about. value is JSON.
CREATE TABLE profile_fields (
    user_id TEXT NOT NULL,
    field   TEXT NOT NULL,
    value   TEXT NOT NULL,
    PRIMARY KEY (user_id, field)
) WITHOUT ROWID;

-- What a search for people looks at: the user id and the display name in lower case.
CREATE TABLE user_directory (
    user_id TEXT NOT NULL PRIMARY KEY,
    words   TEXT NOT NULL
) WITHOUT ROWID;

-- room_id is empty for global account data.
CREATE TABLE account_data (
    user_id  TEXT    NOT NULL,
    room_id  TEXT    NOT NULL,
    type     TEXT    NOT NULL,
    content  TEXT    NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
);
CREATE INDEX account_data_by_position ON account_data (user_id, position);

CREATE TABLE filters (
    user_id   TEXT    NOT NULL,
    filter_id INTEGER NOT NULL,
    content   TEXT    NOT NULL,
    PRIMARY KEY (user_id, filter_id),
    UNIQUE (user_id, content)
);

CREATE TABLE pushers (
    user_id   TEXT NOT NULL,
    app_id    TEXT NOT NULL,
    pushkey   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    content   TEXT NOT NULL,
    PRIMARY KEY (user_id, app_id, pushkey)
) WITHOUT ROWID;

-- Identity keys of devices, local and remote, without the signatures of others.
CREATE TABLE device_keys (
    user_id   TEXT NOT NULL,
    device_id TEXT NOT NULL,
    keys      TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id)
) WITHOUT ROWID;

-- usage: master, self_signing, user_signing.
CREATE TABLE cross_signing_keys (
    user_id    TEXT NOT NULL,
    usage      TEXT NOT NULL,
    public_key TEXT NOT NULL,
    keys       TEXT NOT NULL,
    PRIMARY KEY (user_id, usage)
) WITHOUT ROWID;

-- Verified signatures on devices (target: device id) and master keys (target: public key).
CREATE TABLE key_signatures (
    user_id       TEXT NOT NULL,
    target        TEXT NOT NULL,
    signer        TEXT NOT NULL,
    signer_key_id TEXT NOT NULL,
    signature     TEXT NOT NULL,
    PRIMARY KEY (user_id, target, signer, signer_key_id)
) WITHOUT ROWID;
CREATE INDEX key_signatures_by_signer ON key_signatures (signer, signer_key_id);

-- When a user's devices or cross-signing keys last changed.
CREATE TABLE device_list_changes (
    user_id  TEXT    NOT NULL PRIMARY KEY,
    position INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX device_list_changes_by_position ON device_list_changes (position);

-- When a user last signed another user's key: only the signer sees it.
CREATE TABLE signature_changes (
    signer   TEXT    NOT NULL,
    user_id  TEXT    NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (signer, user_id)
) WITHOUT ROWID;

-- One-time keys not yet given away. peer is empty for those that local users may claim.
CREATE TABLE one_time_keys (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    n         INTEGER NOT NULL,               -- upload order within the device
    keys      TEXT    NOT NULL,
    peer      TEXT    NOT NULL DEFAULT '',
    peer_n    INTEGER NOT NULL DEFAULT 0,     -- order in which it was allotted to the peer; 0: not at all
    PRIMARY KEY (user_id, device_id, key_id)
) WITHOUT ROWID;
CREATE INDEX one_time_keys_by_order ON one_time_keys (user_id, device_id, peer, n);
CREATE INDEX one_time_keys_by_peer ON one_time_keys (peer, peer_n) WHERE peer <> '';

-- Ids of keys given away: an upload that is repeated must not make them claimable again.
CREATE TABLE issued_one_time_keys (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    n         INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, key_id)
) WITHOUT ROWID;
CREATE INDEX issued_one_time_keys_by_order ON issued_one_time_keys (user_id, device_id, n);

CREATE TABLE fallback_keys (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    algorithm TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    keys      TEXT    NOT NULL,
    used      INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, device_id, algorithm)
) WITHOUT ROWID;

-- How many one-time keys of each device a peer should hold.
CREATE TABLE key_pools (
    peer   TEXT    NOT NULL PRIMARY KEY,
    target INTEGER NOT NULL
) WITHOUT ROWID;

-- What a peer last told about each of its users.
CREATE TABLE remote_users (
    user_id   TEXT    NOT NULL PRIMARY KEY,
    stream_id INTEGER NOT NULL
) WITHOUT ROWID;

-- Keys of remote users that their server allotted to us.
CREATE TABLE received_one_time_keys (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    origin    TEXT    NOT NULL,
    n         INTEGER NOT NULL,
    keys      TEXT    NOT NULL,
    PRIMARY KEY (user_id, device_id, key_id)
) WITHOUT ROWID;
CREATE INDEX received_one_time_keys_by_order ON received_one_time_keys (user_id, device_id, n);
CREATE INDEX received_one_time_keys_by_origin ON received_one_time_keys (origin);

-- What we claimed of them, for their server to learn.
CREATE TABLE key_claims (
    origin    TEXT    NOT NULL,
    n         INTEGER NOT NULL,
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    key_id    TEXT    NOT NULL,
    PRIMARY KEY (origin, n)
) WITHOUT ROWID;

-- Numbering of what goes to and comes from each server. kind: to_device, pool, claims.
CREATE TABLE outgoing_counters (
    server TEXT    NOT NULL,
    kind   TEXT    NOT NULL,
    n      INTEGER NOT NULL,
    PRIMARY KEY (server, kind)
) WITHOUT ROWID;
CREATE TABLE incoming_counters (
    server      TEXT    NOT NULL,
    kind        TEXT    NOT NULL,
    incarnation BLOB    NOT NULL,
    n           INTEGER NOT NULL,
    PRIMARY KEY (server, kind)
) WITHOUT ROWID;

CREATE TABLE to_device_inbox (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    position  INTEGER NOT NULL,
    event     TEXT    NOT NULL,
    PRIMARY KEY (user_id, device_id, position)
);

CREATE TABLE to_device_outbox (
    server TEXT    NOT NULL,
    n      INTEGER NOT NULL,
    edu    TEXT    NOT NULL,                  -- content of an m.direct_to_device EDU
    PRIMARY KEY (server, n)
);

CREATE TABLE to_device_transactions (
    user_id   TEXT    NOT NULL,
    device_id TEXT    NOT NULL,
    type      TEXT    NOT NULL,
    txn_id    TEXT    NOT NULL,
    created   INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, type, txn_id)
) WITHOUT ROWID;
CREATE INDEX to_device_transactions_by_age ON to_device_transactions (created);

CREATE TABLE backup_versions (
    user_id   TEXT    NOT NULL,
    version   INTEGER NOT NULL,
    algorithm TEXT    NOT NULL,
    auth_data TEXT    NOT NULL,
    etag      INTEGER NOT NULL DEFAULT 0,
    count     INTEGER NOT NULL DEFAULT 0,
    deleted   INTEGER NOT NULL DEFAULT 0,     -- the number is never used again
    PRIMARY KEY (user_id, version)
) WITHOUT ROWID;

CREATE TABLE backup_keys (
    user_id       TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    room_id       TEXT    NOT NULL,
    session_id    TEXT    NOT NULL,
    first_index   INTEGER NOT NULL,
    forwarded     INTEGER NOT NULL,
    verified      INTEGER NOT NULL,
    session_data  TEXT    NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
);

-- Files are named by the SHA-256 of their content; many media may share one.
CREATE TABLE media (
    origin       TEXT    NOT NULL,
    media_id     TEXT    NOT NULL,
    uploader     TEXT,
    created      INTEGER NOT NULL,
    sha256       BLOB,                        -- NULL: announced, not uploaded yet
    size         INTEGER,
    content_type TEXT,
    filename     TEXT,
    expires      INTEGER,                     -- for those not uploaded yet
    PRIMARY KEY (origin, media_id)
);
CREATE INDEX media_by_content ON media (sha256);
CREATE INDEX media_by_uploader ON media (uploader, created);

CREATE TABLE thumbnails (
    source       BLOB    NOT NULL,            -- SHA-256 of the original
    method       TEXT    NOT NULL,
    width        INTEGER NOT NULL,
    height       INTEGER NOT NULL,
    sha256       BLOB    NOT NULL,
    size         INTEGER NOT NULL,
    content_type TEXT    NOT NULL,
    PRIMARY KEY (source, method, width, height)
);
