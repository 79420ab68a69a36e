//! Volumes as other systems make them, and volumes as nobody should.
//!
//! Real ones come from `mkfs.vfat`, `mkfs.exfat` and mtools; their `fsck` judges what is written here. Where these programs are not
//! installed (`make setup`) the tests say so, loudly, and prove nothing.

#[cfg(test)]
mod damaged;
#[cfg(test)]
mod exfat;
#[cfg(test)]
mod image;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod writing;
