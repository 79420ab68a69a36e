//! A private key in memory that is never written to a swap device or a core dump, and is wiped. (Hibernation writes all of the memory,
//! locked or not.)
//!
//! The key has a page of its own: locked (`mlock`), left out of dumps (`MADV_DONTDUMP`) and of processes that are forked from this one
//! (`MADV_DONTFORK`). What a signature copies of it to registers and the stack is wiped when the signature is made.

#![expect(unsafe_code, reason = "pages are mapped, locked and given back with unsafe functions")]

use std::{ffi::c_void, io, num::NonZeroUsize, ptr::NonNull};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize as _;

use crate::{Error, Secret32};

/// Bytes of the mapping: the kernel makes it one page, however large its pages are.
const MAPPED_BYTES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(Secret32::BYTES - 1);

/// 32 secret bytes in a page of their own.
pub(crate) struct Locked {
    page: NonNull<[u8; Secret32::BYTES]>,
}

// SAFETY: the page belongs to this value alone, is written only through `&mut self`, and no thread has a part in it.
unsafe impl Send for Locked {}
// SAFETY: as above; through `&self` it is only read.
unsafe impl Sync for Locked {}

impl Locked {
    /// Copies a secret to a page of its own. Fails rather than keeps it in memory that can be swapped out.
    pub(crate) fn new(secret: &Secret32) -> Result<Self, Error> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new anonymous mapping, at an address that the kernel chooses, changes no memory of ours.
        let page = unsafe { mmap_anonymous(None, MAPPED_BYTES, protection, MapFlags::MAP_PRIVATE) };
        let page = page.map_err(failed)?.cast();
        // From here on the page is given back by the drop.
        let mut locked = Self { page };
        // SAFETY: the range is the mapping that was just made; these calls do not change what it holds.
        unsafe {
            mlock(locked.address(), MAPPED_BYTES.get()).map_err(failed)?;
            let (address, length) = (locked.address(), MAPPED_BYTES.get());
            madvise(address, length, MmapAdvise::MADV_DONTDUMP).map_err(failed)?;
            madvise(address, length, MmapAdvise::MADV_DONTFORK).map_err(failed)?;
        }
        locked.bytes().copy_from_slice(secret.expose());
        Ok(locked)
    }

    /// The bytes. Do not copy them to where they are not wiped.
    pub(crate) fn expose(&self) -> &[u8; Secret32::BYTES] {
        // SAFETY: the page is mapped, aligned and at least this long until `self` is dropped; the kernel filled it with zeros.
        unsafe { self.page.as_ref() }
    }

    fn bytes(&mut self) -> &mut [u8; Secret32::BYTES] {
        // SAFETY: as for `expose`; `self` is borrowed exclusively.
        unsafe { self.page.as_mut() }
    }

    fn address(&self) -> NonNull<c_void> {
        self.page.cast()
    }

    fn wipe(&mut self) {
        self.bytes().zeroize();
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: the mapping of `new`, to which no reference is left. Its lock ends with it.
        if let Err(error) = unsafe { munmap(self.address(), MAPPED_BYTES.get()) } {
            log::error!(error:%; "a page that held a key, and was wiped, cannot be given back");
        }
    }
}

fn failed(error: nix::Error) -> Error {
    Error::MemoryLock(io::Error::from(error))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::FileExt as _};

    use super::*;

    /// What the kernel says of the mapping that an address is in: a value of `/proc/self/smaps`.
    fn smaps(address: usize, field: &str) -> Option<String> {
        let text = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in text.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let number = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(s, e)| (number(s), number(e))) {
                inside = (start..end).contains(&address);
            }
            if inside && let Some(value) = line.strip_prefix(field) {
                return Some(value.trim().to_owned());
            }
        }
        None
    }

    #[test]
    fn the_page_is_locked_and_not_dumped_until_it_is_gone() {
        let locked = Locked::new(&Secret32::new(&[42; 32])).unwrap();
        let address = locked.page.as_ptr() as usize;
        assert_eq!(locked.expose(), &[42; 32]);
        let flags = smaps(address, "VmFlags:").unwrap();
        // Locked; not in dumps; not copied to children.
        for flag in ["lo", "dd", "dc"] {
            assert!(flags.split(' ').any(|known| known == flag), "{flags}");
        }
        assert_ne!(smaps(address, "Locked:").unwrap(), "0 kB");
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let all = status.lines().find_map(|line| line.strip_prefix("VmLck:")).unwrap();
        assert_ne!(all.trim(), "0 kB");
    }

    #[test]
    fn it_is_wiped_before_it_is_given_back() {
        let mut locked = Locked::new(&Secret32::new(&[42; 32])).unwrap();
        // Read as somebody else would, past every promise of the compiler.
        let memory = fs::File::open("/proc/self/mem").unwrap();
        let look = |at: u64| {
            let mut bytes = [1; 32];
            memory.read_exact_at(&mut bytes, at).map(|()| bytes)
        };
        let address = locked.page.as_ptr() as u64;
        assert_eq!(look(address).unwrap(), [42; 32]);
        locked.wipe();
        assert_eq!(look(address).unwrap(), [0; 32]);

        let secret = Secret32::random().unwrap();
        let locked = Locked::new(&secret).unwrap();
        let address = locked.page.as_ptr() as u64;
        assert_eq!(&look(address).unwrap(), secret.expose());
        drop(locked);
        assert!(!look(address).is_ok_and(|bytes| &bytes == secret.expose()));
    }
}
