//! One file per group of commands.

pub(crate) mod approve;
pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod bundle;
pub(crate) mod card;
pub(crate) mod ceremony;
pub(crate) mod certificate;
pub(crate) mod clock;
pub(crate) mod codes;
pub(crate) mod console;
pub(crate) mod hsm;
pub(crate) mod machine;
pub(crate) mod peer;
pub(crate) mod power;
pub(crate) mod provision;
pub(crate) mod recovery;
pub(crate) mod restore;
pub(crate) mod roster;
pub(crate) mod signer;
pub(crate) mod status;
pub(crate) mod stick;
pub(crate) mod token;
pub(crate) mod update;
