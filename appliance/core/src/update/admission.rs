//! Which update a box takes.

use super::{Manifest, Version};

/// The system that runs, and the least version that its box still takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its version.
    pub version: Version,
    /// The schema of the database that it makes.
    pub schema: u32,
    /// The oldest version that may be installed.
    pub floor: Version,
}

/// Where an update leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To a newer version.
    Up,
    /// To an older one: the entry of the running system must stand back, or the boot loader would not take the older one.
    Down,
}

/// Why an update is not taken, although it is genuine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// It is what runs.
    #[error("version {0} is what runs here: there is nothing to install")]
    Runs(Version),
    /// It may not be installed over what runs.
    #[error(
        "version {version} can be installed over {from} and later, and {running} runs here: install {from} first"
    )]
    TooFar {
        /// Its version.
        version: Version,
        /// What it may be installed over.
        from: Version,
        /// What runs.
        running: Version,
    },
    /// It could not open the database.
    #[error(
        "version {version} knows the database up to schema {knows}, and it has {has}: that version can come back only together with a backup that it made"
    )]
    OldSchema {
        /// Its version.
        version: Version,
        /// The newest schema that it knows.
        knows: u32,
        /// The schema of the running system.
        has: u32,
    },
    /// A version after it closed a hole that it has.
    #[error(
        "version {version} is older than {floor}, the oldest that this box still takes: an officer can permit it with `sallyctl approve update`, and you give the command again with --approval FILE"
    )]
    BelowFloor {
        /// Its version.
        version: Version,
        /// The floor.
        floor: Version,
    },
}

impl Running {
    /// Whether this box takes an update. `permitted` says that an officer approved to go below the floor; nothing else can be waived.
    ///
    /// # Errors
    /// [`NotAdmitted`] says why, and what to do.
    pub fn admit(&self, update: &Manifest, permitted: bool) -> Result<Direction, NotAdmitted> {
        let (version, running) = (update.version, self.version);
        if version == running {
            return Err(NotAdmitted::Runs(running));
        }
        if running < update.from {
            return Err(NotAdmitted::TooFar { version, from: update.from, running });
        }
        if update.schema < self.schema {
            let (knows, has) = (update.schema, self.schema);
            return Err(NotAdmitted::OldSchema { version, knows, has });
        }
        if version < self.floor && !permitted {
            return Err(NotAdmitted::BelowFloor { version, floor: self.floor });
        }
        Ok(if version > running { Direction::Up } else { Direction::Down })
    }
}
