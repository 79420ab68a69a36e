//! Updates of the system: an update file is written to the slot that does not run, and the boot loader is told to try it.
//!
//! Everything is written so that the power may go at any moment: the old system starts, or the new one, never neither. What that rests on:
//!
//! 1. Nothing is written before the whole file was verified.
//! 2. Nothing that starts is written to: the slot of the running system is known by its root hash, and partitions that are in use do not open for writing.
//! 3. Between two steps that depend on each other everything is flushed to the medium ([`medium::Medium::flush`]).
//! 4. The step that makes the new system start is the write of one sector: the entry of its kernel in the folder of the boot partition.
//!
//! The boot partition is written here, in user space ([`fat`]), and not by the kernel: only then can the fourth point hold, can a test record and reorder each write, and is
//! there one less file system that the kernel of a box must have.

pub(crate) mod apply;
pub(crate) mod boot;
pub(crate) mod disk;
pub(crate) mod fat;
pub(crate) mod file;
pub(crate) mod gpt;
pub(crate) mod ledger;
pub(crate) mod medium;
pub(crate) mod news;
pub(crate) mod slots;
pub(crate) mod system;

#[cfg(test)]
pub(crate) mod tests;
