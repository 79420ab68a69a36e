//! Seals of the machine's journal in the audit log: what a unit of the machine read, and the box puts on record.

use sallyport_core::{
    admin::Unapproved,
    journal::{JOURNAL_SEALED, Seal, SeqnumId},
};
use sallyport_store::Store;

use super::order::Order;

/// Why there is no seal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database failed.
    #[error("the seals of the journal cannot be read or kept")]
    Store(#[from] sallyport_store::Error),
    /// Approvals came with it.
    #[error(transparent)]
    Approval(#[from] Unapproved),
    /// It is of no entries, or of more than there are numbers.
    #[error(
        "a seal of {} entries after number {} and up to {} cannot be", .0.entries, .0.after, .0.last
    )]
    Impossible(Seal),
    /// It does not begin where the last one ends.
    #[error(
        "the journal is sealed up to entry {sealed}, and this seal begins after {after}: read it again from there"
    )]
    NotNext {
        /// Where the last seal ends.
        sealed: u64,
        /// Where this one begins.
        after: u64,
    },
}

/// The number of the last entry of this counting that is sealed; 0 if none is.
///
/// # Errors
/// If the database fails.
pub fn sealed_up_to(store: &Store, seqnum_id: SeqnumId) -> Result<u64, sallyport_store::Error> {
    let seal = store.read(|read| read.last_journal_seal(seqnum_id))?;
    Ok(seal.map_or(0, |seal| seal.last))
}

/// Puts a seal on record, which follows the last one of its counting.
///
/// # Errors
/// If it does not follow, or the database fails.
pub fn seal(store: &Store, seal: Seal, order: &Order) -> Result<u64, Error> {
    let mandate = order.alone()?;
    if !seal.is_possible() {
        return Err(Error::Impossible(seal));
    }
    store.write(move |write| {
        let last = write.last_journal_seal(seal.seqnum_id)?;
        let sealed = last.map_or(0, |last| last.last);
        if sealed != seal.after {
            return Err(Error::NotNext { sealed, after: seal.after });
        }
        write.append_audit(mandate.entry(JOURNAL_SEALED, seal.seqnum_id, seal.details()))?;
        Ok(seal.last)
    })
}
