//! Updates over a disk in memory that keeps a record of every write and every flush.

pub(crate) mod bench;
mod boot_partition;
mod power_cuts;
mod programs;
mod refusals;
