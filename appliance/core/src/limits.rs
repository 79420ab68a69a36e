//! Every bound in one place: what comes from outside is held against these before it is parsed.

use crate::sign::Budget;

// --- Events (Client-Server API, "Size limits"; Server-Server API, "PDUs") ---

/// Bytes of a PDU in canonical JSON, its signatures included.
pub const PDU_BYTES_MAX: usize = 65_536;
/// Bytes kept free in a PDU for our own signature: key id, server name (230 at most) and 86 characters of base64.
pub const SIGNATURE_BYTES_RESERVED: usize = 512;
/// Bytes of an event type, a state key, a sender or an event id.
pub const IDENTIFIER_BYTES_MAX: usize = 255;
/// Events that a PDU may name in `prev_events`.
pub const PREV_EVENTS_MAX: usize = 20;
/// Events that a PDU may name in `auth_events`.
pub const AUTH_EVENTS_MAX: usize = 10;
/// Depth beyond which canonical JSON cannot count.
pub const DEPTH_MAX: u64 = 9_007_199_254_740_991;
/// Soft-failed and rejected events that a walk from an event to the extremities before it may visit.
pub const REFUSED_WALK_MAX: usize = 1_000;
/// Events that a walk over an auth chain may visit.
pub const AUTH_CHAIN_MAX: usize = 200_000;
/// Events from elsewhere that are judged and stored together: about 10 ms of the writer's time.
pub const RECEIVE_SLICE_EVENTS: usize = 256;
/// How often missing events are fetched for one slice before it waits.
pub const FETCH_ROUNDS_MAX: usize = 8;
/// How often a decision is made again because the room moved meanwhile.
pub const DECIDE_ATTEMPTS_MAX: usize = 16;
/// Milliseconds that an event may be ahead of our clock before it is held.
pub const FUTURE_MS_MAX: u64 = 24 * 60 * 60 * 1000;
/// Milliseconds that a key document may be relied on after it was made (room versions 5 and later).
pub const KEY_VALIDITY_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

// --- Signing (`sign`) ---

/// Bytes of our key document: dozens of old keys fit.
pub const KEY_DOCUMENT_BYTES_MAX: usize = 64 * 1024;
/// Bytes that a token is given to sign, other than an event: pure Ed25519 hashes them in the device, which gets slow.
pub const SIGNED_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of the certificate of a working key: names of at most 255 bytes, a public key, a signature.
pub const WORKING_KEY_BYTES_MAX: usize = 1024;
/// Milliseconds that an event waits for its signature before the box warns, and before it says that the exchange with peers stands still.
pub const UNSIGNED_MS_WARNING: u64 = 60 * 60 * 1000;
/// As [`UNSIGNED_MS_WARNING`], for the second and louder warning.
pub const UNSIGNED_MS_ALARM: u64 = 24 * 60 * 60 * 1000;
/// Events that wait for their signature before the box warns: an hour of a token that makes three signatures a second.
pub const UNSIGNED_EVENTS_WARNING: u64 = 10_000;
/// As [`UNSIGNED_EVENTS_WARNING`], for the louder warning: a day of such a token.
pub const UNSIGNED_EVENTS_ALARM: u64 = 250_000;
/// Bytes free on the disk of the database below which the box warns: only the disk bounds what waits for the token.
pub const DISK_FREE_BYTES_WARNING: u64 = 2 << 30;
/// As [`DISK_FREE_BYTES_WARNING`], for the louder warning: soon no message is accepted any more.
pub const DISK_FREE_BYTES_ALARM: u64 = 256 << 20;
/// Events whose signatures one row of the audit log tells of.
pub const SIGNING_RUN_EVENTS_MAX: u64 = 10_000;
/// Milliseconds of signing that one row of the audit log tells of: a busy box adds some 300 rows a day.
pub const SIGNING_RUN_MS_MAX: u64 = 5 * 60 * 1000;
/// Rows of the audit log between two checkpoints.
pub const CHECKPOINT_ROWS: u64 = 256;
/// Milliseconds after which the box makes a checkpoint of whatever rows are new.
pub const CHECKPOINT_MS: u64 = 24 * 60 * 60 * 1000;
/// Bytes of a signed checkpoint: a server name and a dozen short fields.
pub const CHECKPOINT_BYTES_MAX: usize = 1024;
/// Keys that signed checkpoints of one audit log.
pub const AUDIT_KEYS_MAX: usize = 64;
/// Signatures of each kind that the box asks of its token: how many at once, and then how many a minute. Whoever owns one
/// endpoint of the box makes the token sign no more than that. Events have no such bound: what people write is signed.
pub const SIGNATURES_RARE: Budget = Budget { burst: 20, per_minute: 2 };
/// For what every bundle needs once: key documents, manifests, acknowledgements.
pub const SIGNATURES_PER_BUNDLE: Budget = Budget { burst: 120, per_minute: 30 };
/// For what other servers ask for while they wait.
pub const SIGNATURES_FEDERATION: Budget = Budget { burst: 600, per_minute: 600 };
/// For handshakes of TLS: sessions are resumed without one.
pub const SIGNATURES_HANDSHAKES: Budget = Budget { burst: 1000, per_minute: 1200 };
/// Bytes of a frame between the box and the process with the PKCS#11 module: what is signed and the names around it.
pub const TOKEN_FRAME_BYTES_MAX: usize = SIGNED_BYTES_MAX + 64 * 1024;

// --- Secrets at rest and certificates (`vault`, `tls`) ---

/// Bytes of the vault: a few keys and a certificate.
pub const VAULT_BYTES_MAX: usize = 64 * 1024;
/// Bytes of a chain of certificates that an administrator installs, and of the file in which the CA is kept.
pub const CERTIFICATES_BYTES_MAX: usize = 64 * 1024;
/// Signatures of TLS handshakes that the token is asked for at a time; further handshakes wait for their turn.
pub const TLS_SIGNATURES_AT_ONCE: usize = 8;

// --- HTTP ---

/// Bytes of a JSON body: the largest real ones are uploads of key backups.
pub const JSON_BODY_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Milliseconds in which a JSON body must arrive.
pub const BODY_READ_MS_MAX: u64 = 30_000;
/// Milliseconds in which the head of a request must arrive; also how long a connection may idle.
pub const HEADER_READ_MS_MAX: u64 = 60_000;
/// Headers of a request.
pub const HTTP_HEADERS_MAX: usize = 64;
/// Bytes of the head of a request, and of what is buffered per connection.
pub const HTTP_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Connections from one address at a time, except this machine's own.
pub const CONNECTIONS_PER_ADDRESS_MAX: usize = 256;
/// Milliseconds in which a TLS handshake must end.
pub const TLS_HANDSHAKE_MS_MAX: u64 = 10_000;
/// Calls of use cases at a time. More than there are readers: writers that wait together share one fsync.
pub const BLOCKING_CALLS_MAX: usize = 64;

// --- Rosters and the admin socket (`roster`, `admin`) ---

/// Bytes of a roster in any form.
pub const ROSTER_BYTES_MAX: usize = 128 << 20;
/// Accounts and locks in a roster.
pub const ROSTER_ACCOUNTS_MAX: usize = 250_000;
/// Bytes of a display name, a unit, an external id, or the name of a clearance.
pub const ROSTER_NAME_BYTES_MAX: usize = 255;
/// Clearance levels of an enclave.
pub const ROSTER_LEVELS_MAX: usize = 32;
/// Clearances of an account.
pub const ROSTER_CLEARANCES_MAX: usize = 32;
/// Client certificates of an account.
pub const ROSTER_CERTS_MAX: usize = 16;
/// Problems of a roster that are reported in full.
pub const ROSTER_PROBLEMS_MAX: usize = 50;
/// Percentage of the active accounts that a roster may lock without the approval of a second person.
pub const ROSTER_LOCK_PERCENT_MAX: usize = 10;
/// Milliseconds that an activation code may be used for.
pub const ACTIVATION_MS_MAX: u64 = 14 * 24 * 60 * 60 * 1000;
/// Bytes of the header that names the actor and the approvals of an administrative command.
pub const ADMIN_AUTHORITY_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the body of an administrative command that is not a file.
pub const ADMIN_BODY_BYTES_MAX: usize = 8 << 20;
/// Approvals of an administrative command.
pub const ADMIN_APPROVALS_MAX: usize = 8;
/// Characters of the name of an actor.
pub const ADMIN_ACTOR_CHARS_MAX: usize = 100;
/// Milliseconds that a file may take over the administration socket.
pub const ADMIN_UPLOAD_MS_MAX: u64 = 60_000;
/// Names of accounts in the report of a roster.
pub const ROSTER_REPORT_NAMES_MAX: usize = 50;
/// Activation codes that are renewed at once.
pub const ACTIVATION_CODES_MAX: usize = 250_000;
/// Bytes of the form on the activation page.
pub const ACTIVATION_FORM_BYTES_MAX: usize = 16 * 1024;
/// Bytes of the texts in a row of the audit log. What a command is given is bounded far below.
pub const AUDIT_ROW_BYTES_MAX: usize = 64 * 1024;
/// Characters of an error in the audit log.
pub const AUDIT_ERROR_CHARS_MAX: usize = 2000;
/// Rows of the audit log in one answer.
pub const AUDIT_PAGE_ROWS_MAX: u32 = 1000;

// --- Pairing cards (`card`) ---

/// Bytes of a signed pairing card.
pub const CARD_BYTES_MAX: usize = 128 * 1024;
/// Bytes of the name of an enclave.
pub const CARD_NAME_BYTES_MAX: usize = 255;
/// Courier keys of each kind on a card: the current and the next ones.
pub const CARD_KEYS_MAX: usize = 16;
/// Room versions on a card.
pub const CARD_ROOM_VERSIONS_MAX: usize = 32;

// --- Sticks and what provisions a box (`provision`) ---

/// Bytes of a provisioning document.
pub const STICK_PROVISION_BYTES_MAX: usize = 64 * 1024;
/// Addresses and ports that a box is told to serve.
pub const PROVISION_LISTENERS_MAX: usize = 8;
/// Names of a box, and servers of one kind in its network.
pub const PROVISION_NAMES_MAX: usize = 32;
/// Officers of an enclave.
pub const PROVISION_OFFICERS_MAX: usize = 64;
/// Bytes of the name of a kind of token.
pub const TOKEN_KIND_BYTES_MAX: usize = 32;
/// Bytes of the label of a token (PKCS#11, `CK_TOKEN_INFO`).
pub const TOKEN_LABEL_BYTES_MAX: usize = 32;
/// Bytes of the serial number of a token (PKCS#11, `CK_TOKEN_INFO`).
pub const TOKEN_SERIAL_BYTES_MAX: usize = 16;
/// Sessions with a token that work at once.
pub const TOKEN_SESSIONS_MAX: u8 = 16;
/// Milliseconds that an operation of a token may take at least, and at most.
pub const TOKEN_TIMEOUT_MS_MIN: u64 = 1_000;
/// See [`TOKEN_TIMEOUT_MS_MIN`].
pub const TOKEN_TIMEOUT_MS_MAX: u64 = 300_000;
/// Bytes of the settings of a token's helper, and of a description of a module.
pub const TOKEN_SETTINGS_BYTES_MAX: u64 = 16 * 1024;
/// Bytes of a line between those who set a blank token up: two PINs fit, or an error.
pub const TOKEN_SETUP_BYTES_MAX: u64 = 4 * 1024;
/// Bytes of an order for what goes onto a stick.
pub const STICK_ORDER_BYTES_MAX: usize = 16 * 1024;
/// Days for which an order about people may be given ahead.
pub const ORDER_DAYS_MAX: u32 = 31;
/// Bytes of a new version of the box: its root with the tree of hashes, its kernel, and little beside them.
pub const STICK_UPDATE_BYTES_MAX: u64 = UPDATE_ROOT_BYTES_MAX + UPDATE_UKI_BYTES_MAX + (16 << 20);
/// Files of one stick that are copied.
pub const STICK_FILES_MAX: usize = 1000;
/// Files and folders that were left alone and are named.
pub const STICK_LEFT_SHOWN_MAX: usize = 100;
/// Bytes of the list of what a stick brought: names have up to 255 characters.
pub const STICK_INVENTORY_BYTES_MAX: usize = 4 << 20;
/// Bytes that the files of one stick take in quarantine, if nothing else is said: the largest bundle and what goes with it.
pub const STICK_BYTES_MAX: u64 = BUNDLE_BYTES_MAX + (1 << 30);
/// Fields of an entry of the machine's journal: journald takes 1024 from a service, and adds some of its own.
pub const JOURNAL_FIELDS_MAX: usize = 2048;
/// Bytes of the name of such a field (systemd.journal-fields(7): 64), or of the position of an entry, which is some 200 characters.
pub const JOURNAL_WORD_BYTES_MAX: usize = 512;
/// Bytes of the machine's journal that go onto a stick.
pub const STICK_JOURNAL_BYTES_MAX: u64 = 512 << 20;

// --- Bundles (`bundle`) ---

/// Bytes of the signed header of a bundle: two server names and a dozen short fields.
pub const BUNDLE_HEADER_BYTES_MAX: usize = 4 * 1024;
/// Bytes of a manifest: the frontiers of tens of thousands of rooms fit. Decoded it takes some 25 times as much.
pub const BUNDLE_MANIFEST_BYTES_MAX: usize = 4 << 20;
/// Sections of a bundle: one per room and a few more.
pub const BUNDLE_SECTIONS_MAX: usize = 16_384;
/// Bytes that one byte of a compressed section may become.
pub const BUNDLE_RATIO_MAX: u64 = 50;
/// Logarithm of the bytes of zstd's window: 8 MiB.
pub const BUNDLE_WINDOW_LOG_MAX: u32 = 23;
/// Bytes of the shortest record: its length and one byte.
pub const BUNDLE_RECORD_BYTES_MIN: u64 = 5;
/// Milliseconds between the making of a bundle and its expiry.
pub const BUNDLE_LIFETIME_MS_MAX: u64 = 180 * 24 * 60 * 60 * 1000;
/// Bytes of a record that has no smaller bound.
pub const RECORD_BYTES_MAX: usize = 1 << 20;
/// Bytes of the messages in one to-device record: those of one request, which may go to many devices.
pub const TO_DEVICE_BYTES_MAX: usize = JSON_BODY_BYTES_MAX;
/// Bytes of one part of a media file.
pub const MEDIA_PART_BYTES_MAX: usize = 1 << 20;

// --- Updates of the system (`update`) ---

/// Bytes of what is signed in an update: a dozen short fields and a line about the release.
pub const UPDATE_MANIFEST_BYTES_MAX: usize = 4 * 1024;
/// Bytes of the line about the release.
pub const UPDATE_NOTES_BYTES_MAX: usize = 200;
/// Bytes of a root file system or of its hash tree.
pub const UPDATE_ROOT_BYTES_MAX: u64 = 1 << 30;
/// Bytes of a unified kernel image.
pub const UPDATE_UKI_BYTES_MAX: u64 = 128 << 20;
/// Bytes of the file with the release keys that a system believes.
pub const UPDATE_KEYS_BYTES_MAX: usize = 16 * 1024;
/// Bytes of what a box remembers of its updates.
pub const UPDATE_LEDGER_BYTES_MAX: usize = 16 * 1024;
/// Milliseconds that a system on trial waits, once it is ready, for the boot loader's entry to be blessed. Then it gives up, and the box starts again.
pub const UPDATE_BLESSING_MS_MAX: u64 = 5 * 60 * 1000;

// --- Accounts and end-to-end encryption ---

/// Bytes of the identity keys of a device or of a cross-signing key, its signatures included.
pub const DEVICE_KEYS_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a one-time or fallback key.
pub const ONE_TIME_KEY_BYTES_MAX: usize = 2 * 1024;
/// One-time keys of a device that are kept, pools for peers included. Clients hold the private halves of 5000 at most.
pub const ONE_TIME_KEYS_MAX: usize = 2_500;
/// One-time keys of a device that stay local before pools for peers are filled.
pub const ONE_TIME_KEYS_LOCAL: usize = 20;
/// Issued one-time keys of a device whose ids are remembered, so that a repeated upload does not issue one twice.
pub const ISSUED_KEYS_REMEMBERED: i64 = 5_000;
/// One-time keys that one request may claim.
pub const CLAIMS_MAX: usize = 10_000;
/// Users that one key query may name.
pub const KEY_QUERY_USERS_MAX: usize = 10_000;
/// Devices that one request may send messages to.
pub const TO_DEVICE_RECIPIENTS_MAX: usize = 20_000;
/// Signatures that one request may bring.
pub const KEY_SIGNATURES_MAX: usize = 2_000;

// --- Backups (`backup`) ---

/// Bytes of the header of a backup: the stanzas of all recipients fit.
pub const BACKUP_HEADER_BYTES_MAX: usize = 32 * 1024;
/// Recovery keys that a backup is encrypted to.
pub const BACKUP_RECIPIENTS_MAX: usize = 16;
/// Bytes of the head of one item of a backup: a name and three numbers.
pub const BACKUP_ITEM_HEAD_BYTES_MAX: usize = 512;
/// Bytes of one block of an item.
pub const BACKUP_BLOCK_BYTES_MAX: usize = 256 * 1024;
/// Bytes of a settings file, of a file with wrapped keys, or of the signed manifest.
pub const BACKUP_FILE_BYTES_MAX: usize = 1 << 20;
/// Settings files, and files with wrapped keys, of a backup.
pub const BACKUP_FILES_MAX: usize = 64;
/// Media files that a backup may refer to. A reader keeps 41 bytes for each.
pub const BACKUP_MEDIA_MAX: usize = 4 << 20;
/// Bytes of the database, and of one media file, in a backup: 1 TiB.
pub const BACKUP_CONTENT_BYTES_MAX: u64 = 1 << 40;
/// Backups that one restore takes: a full one and those that follow it.
pub const BACKUP_CHAIN_MAX: usize = 64;
/// Milliseconds after which the box warns that it has no younger backup: a week.
pub const BACKUP_AGE_MS_WARNING: u64 = 7 * 24 * 60 * 60 * 1000;
/// Bytes of the first words of a backup, which tell which one it is: preamble and header.
pub const BACKUP_HEAD_BYTES_MAX: usize = 24 + BACKUP_HEADER_BYTES_MAX;
/// Bytes of one part of a backup on a stick: FAT32 has no files of 4 GiB.
pub const BACKUP_PART_BYTES_MAX: u64 = (4 << 30) - (1 << 20);
/// Parts of one backup.
pub const BACKUP_PARTS_MAX: u32 = 999;
/// Bytes of the request of a machine that waits for a restore: a public key in text form.
pub const RESTORE_REQUEST_BYTES_MAX: usize = 4 * 1024;
/// Bytes of the grant of a restore: a stanza for each backup of a chain, and little beside them.
pub const RESTORE_GRANT_BYTES_MAX: usize = 256 * 1024;
/// Bytes of the fingerprint of an enclave root in words.
pub const RESTORE_FINGERPRINT_BYTES_MAX: usize = 256;
/// Backups that the box remembers the media of, so that a next one can follow them.
pub const BACKUPS_REMEMBERED: usize = 8;
/// Stream positions that a restore leaves out: more than a box can have used between its last backup and its end, so that no number that
/// clients or peers saw is used again for something else.
pub const RESTORE_POSITIONS_SKIPPED: i64 = 1 << 32;

// --- The exchange of bundles ---

/// Milliseconds for which a courier key may be used once a card or bundle names it: two years.
pub const COURIER_KEY_LIFETIME_MS: u64 = 2 * 365 * 24 * 60 * 60 * 1000;
/// Milliseconds for which a bundle may be imported after it was made.
pub const BUNDLE_VALIDITY_MS: u64 = 90 * 24 * 60 * 60 * 1000;
/// Milliseconds for which a peer may give one-time keys away.
pub const POOL_LIFETIME_MS: u64 = 180 * 24 * 60 * 60 * 1000;
/// Bytes of the largest bundle that is taken.
pub const BUNDLE_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// Lines of each kind in the report of an import.
pub const REPORT_LINES_MAX: usize = 100;
/// Bytes of the largest media file that travels without being asked for.
pub const MEDIA_PUSH_BYTES_MAX: u64 = 8 * 1024 * 1024;

// --- Sessions ---

/// Bytes of a password.
pub const PASSWORD_BYTES_MAX: usize = 512;
/// Characters of a new password.
pub const PASSWORD_CHARACTERS_MIN: usize = 8;
/// Bytes of a device id.
pub const DEVICE_ID_BYTES_MAX: usize = 128;
/// Bytes of a device's or a person's name.
pub const DISPLAY_NAME_BYTES_MAX: usize = 256;
/// Milliseconds for which an access token is valid whose client can refresh it.
pub const ACCESS_TOKEN_MS: u64 = 60 * 60 * 1000;
/// Milliseconds within which it is noted once that a device was heard of.
pub const LAST_SEEN_MS: u64 = 5 * 60 * 1000;
/// Access tokens that are remembered after they were looked up.
pub const SESSIONS_CACHED: usize = 20_000;
/// Log-ins that may fail in a row for one account.
pub const FAILED_LOGINS_PER_ACCOUNT: u64 = 10;
/// Log-ins that may fail in a row from one address: many people may share it.
pub const FAILED_LOGINS_PER_ADDRESS: u64 = 100;
/// Milliseconds after which one failed log-in is forgotten.
pub const FAILED_LOGIN_FORGOTTEN_MS: u64 = 30_000;
/// Accounts and addresses whose failed log-ins are remembered.
pub const ATTEMPTS_REMEMBERED: usize = 10_000;
/// Open sessions of user-interactive authentication.
pub const INTERACTIVE_SESSIONS_MAX: usize = 10_000;
/// Milliseconds for which such a session stays open.
pub const INTERACTIVE_SESSION_MS: u64 = 15 * 60 * 1000;
/// OpenID tokens that have not expired.
pub const OPENID_TOKENS_MAX: usize = 10_000;
/// Milliseconds for which such a token holds.
pub const OPENID_TOKEN_MS: u64 = 60 * 60 * 1000;

// --- What members keep on the box ---

/// Bytes of one piece of account data, a filter or a pusher.
pub const ACCOUNT_DATA_BYTES_MAX: usize = 512 * 1024;
/// Pieces of account data of a member, those of rooms included.
pub const ACCOUNT_DATA_MAX: usize = 20_000;
/// Filters of a member.
pub const FILTERS_MAX: i64 = 1_000;
/// Pushers of a member.
pub const PUSHERS_MAX: usize = 100;
/// Push rules of a member, predefined ones not counted.
pub const PUSH_RULES_MAX: usize = 2_000;
/// Bytes of a profile: names and values of all fields.
pub const PROFILE_BYTES_MAX: usize = 64 * 1024;
/// Bytes of the name of a field of a profile.
pub const PROFILE_FIELD_BYTES_MAX: usize = 255;
/// People that one search of the user directory answers.
pub const USERS_FOUND_MAX: usize = 50;
/// Bytes of a search term.
pub const SEARCH_TERM_BYTES_MAX: usize = 1_024;
/// Keys of a deleted backup that are removed at a time.
pub const BACKUP_KEYS_PURGED: u32 = 500;
/// Members whose presence is remembered.
pub const PRESENCES_MAX: usize = 100_000;
/// Milliseconds after which a member counts as offline of whom nothing was heard: the longest long-poll, and a minute to come back.
pub const PRESENCE_MS_MAX: u64 = SYNC_WAIT_MS_MAX + 60_000;
/// Milliseconds between two looks for such members, as each look is at all of them.
pub const PRESENCE_SWEEP_MS: u64 = 10_000;
/// Bytes of a status message.
pub const STATUS_BYTES_MAX: usize = 1_024;

// --- Media ---

/// Announced uploads of a member that have not come yet.
pub const MEDIA_ANNOUNCED_MAX: usize = 100;
/// Milliseconds for which an announced upload is waited for.
pub const MEDIA_ANNOUNCED_MS: u64 = 24 * 60 * 60 * 1000;
/// Bytes of a file name or a content type of media.
pub const MEDIA_NAME_BYTES_MAX: usize = 512;
/// Milliseconds in which the next piece of an upload must arrive.
pub const MEDIA_PIECE_MS_MAX: u64 = 30_000;
/// Bytes of an upload that are collected before they are written.
pub const UPLOAD_PIECE_BYTES: usize = 256 * 1024;
/// Bytes of a file that are read at a time.
pub const DOWNLOAD_PIECE_BYTES: usize = 64 * 1024;
/// Bytes of an image of which a thumbnail is made.
pub const THUMBNAIL_SOURCE_BYTES_MAX: u64 = 50 * 1024 * 1024;
/// Width and height in pixels of an image of which a thumbnail is made.
pub const THUMBNAIL_SOURCE_PIXELS_MAX: u32 = 10_000;
/// Bytes that decoding an image may take.
pub const THUMBNAIL_DECODED_BYTES_MAX: u64 = 160 * 1024 * 1024;
/// Thumbnails that are made at a time.
pub const THUMBNAILS_AT_ONCE: usize = 2;

// --- Rooms and sync ---

/// Events that one page of `/messages`, `/relations` or `/sync` may hold per room.
pub const PAGE_EVENTS_MAX: usize = 1000;
/// Events that one search for a text may look at: then its page ends early.
pub const SEARCH_EVENTS_MAX: usize = 10_000;
/// Events of one room that are read at a time when several rooms are read together.
pub const MERGE_SLICE_EVENTS: usize = 100;
/// Events that one page of such a search may find.
pub const SEARCH_RESULTS_MAX: usize = 100;
/// Events before and after an event that such a search may show with it.
pub const SEARCH_CONTEXT_MAX: usize = 20;
/// Notifications that one page may list.
pub const NOTIFICATIONS_MAX: usize = 100;
/// Events that are looked at for one page of notifications: then it ends early.
pub const NOTIFICATION_EVENTS_MAX: usize = 2_000;
/// Rooms that a room may have replaced, one the other, and that are searched along with it.
pub const PREDECESSORS_MAX: usize = 10;
/// Relations that are followed from an event to those that relate to it over others.
pub const RELATIONS_DEPTH_MAX: usize = 3;
/// Annotations of one user on one event that a new one is compared with.
pub const ANNOTATIONS_COMPARED_MAX: usize = 100;
/// Events of a room's timeline in a sync whose filter names no limit.
pub const TIMELINE_EVENTS_DEFAULT: usize = 20;
/// Events that a filter may make one page read without matching any: then the page ends early.
pub const FILTERED_EVENTS_MAX: usize = 2000;
/// Milliseconds that a long-poll may wait.
pub const SYNC_WAIT_MS_MAX: u64 = 120_000;
/// Milliseconds that someone may be shown as typing without saying so again.
pub const TYPING_MS_MAX: u64 = 60_000;
/// Users shown as typing in one room.
pub const TYPING_USERS_MAX: usize = 100;
/// Events after a member's receipt that are looked at for their unread counts.
pub const UNREAD_EVENTS_MAX: usize = 500;
/// Rooms of members whose unread counts are kept in memory.
pub const UNREAD_COUNTS_KEPT: usize = 50_000;
/// Receipts that a sync shows of one room at first.
pub const RECEIPTS_MAX: usize = 1000;
/// Users that may be invited while a room is created.
pub const INVITES_AT_CREATION_MAX: usize = 100;
/// State events that may be given while a room is created.
pub const INITIAL_STATE_MAX: usize = 100;
/// Times that a local event is drafted again because the room's state has moved.
pub const DRAFTS_MAX: usize = 16;
/// Rooms that one page of the directory or of a space may list.
pub const ROOMS_PAGE_MAX: usize = 100;
/// Levels of rooms below a space that are listed.
pub const SPACE_DEPTH_MAX: usize = 10;
/// Bytes of a reason for a kick, a ban, a redaction, an invite.
pub const REASON_BYTES_MAX: usize = 1024;
/// Messages to a device in one sync.
pub const TO_DEVICE_MESSAGES_MAX: usize = 100;
