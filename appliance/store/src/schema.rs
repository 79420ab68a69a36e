//! The list of migrations. A released one is never edited.

use rusqlite::Connection;
use rusqlite_migration::{M, MigrationDefinitionError, Migrations};

use crate::error::{Error, Result};

/// Plain SQL, in order. `user_version` of the file counts how many have run.
const MIGRATIONS: &[M<'static>] = &[
    M::up(include_str!("../migrations/0001_meta.sql")),
    M::up(include_str!("../migrations/0002_accounts.sql")),
    M::up(include_str!("../migrations/0003_rooms.sql")),
    M::up(include_str!("../migrations/0004_reading.sql")),
    M::up(include_str!("../migrations/0005_keys.sql")),
    M::up(include_str!("../migrations/0006_peers.sql")),
    M::up(include_str!("../migrations/0007_administration.sql")),
    M::up(include_str!("../migrations/0008_signing.sql")),
    M::up(include_str!("../migrations/0009_hybrid_keys.sql")),
    M::up(include_str!("../migrations/0010_restore.sql")),
    M::up(include_str!("../migrations/0011_journal_seals.sql")),
];

/// The schema that this version makes.
pub(crate) fn newest() -> u32 {
    // As many as there are lines above.
    u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX)
}

/// Brings the database to the newest schema.
pub(crate) fn migrate(connection: &mut Connection) -> Result<()> {
    Migrations::from_slice(MIGRATIONS).to_latest(connection).map_err(|error| match error {
        rusqlite_migration::Error::MigrationDefinition(
            MigrationDefinitionError::DatabaseTooFarAhead,
        ) => Error::SchemaTooNew {
            found: connection
                .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
                .ok()
                .and_then(|version| usize::try_from(version).ok())
                .unwrap_or_default(),
            known: MIGRATIONS.len(),
        },
        other => Error::Migration(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn migrations_are_valid() {
        Migrations::from_slice(MIGRATIONS).validate().unwrap();
    }

    #[test]
    fn a_newer_database_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "user_version", 9999).unwrap();
        let error = migrate(&mut connection).unwrap_err();
        assert!(matches!(error, Error::SchemaTooNew { found: 9999, .. }), "{error}");
    }
}
