//! Proof that secrets are wiped: an allocator for the unit tests of this crate that looks into every block of the heap
//! before it is given back.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    slice,
};

use crate::{Pin, Secret32};

/// Bytes of a secret that are enough to know it by.
const NEEDLE_BYTES: usize = 16;

#[global_allocator]
static LOOKING: Looking = Looking;

struct Looking;

thread_local! {
    /// What this thread looks for, with every bit turned: it must not be found itself.
    static LOOKED_FOR: Cell<Option<[u8; NEEDLE_BYTES]>> = const { Cell::new(None) };
    static FOUND: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does the work. A block that grows is moved by the default of `realloc`, which gives the old one back to
// `dealloc`.
unsafe impl GlobalAlloc for Looking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract. Zeroed, so that every byte can be read in `dealloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if let Some(turned) = LOOKED_FOR.get() {
            // SAFETY: the block is of this length, was initialised by `alloc`, and nobody else has it any more.
            let bytes = unsafe { slice::from_raw_parts(block.cast_const(), layout.size()) };
            let secret =
                |window: &[u8]| window.iter().zip(turned).all(|(byte, bits)| *byte == !bits);
            if bytes.windows(NEEDLE_BYTES).any(secret) {
                FOUND.set(FOUND.get() + 1);
            }
        }
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }
}

/// How many blocks of the heap this thread gives back with the first bytes of `secret` in them, while it does something.
pub(crate) fn leaks(secret: &[u8], act: impl FnOnce()) -> usize {
    let mut turned = [0; NEEDLE_BYTES];
    for (to, from) in turned.iter_mut().zip(&secret[..NEEDLE_BYTES]) {
        *to = !from;
    }
    FOUND.set(0);
    LOOKED_FOR.set(Some(turned));
    act();
    LOOKED_FOR.set(None);
    FOUND.get()
}

#[test]
fn what_is_not_wiped_is_found() {
    let secret = *Secret32::random().unwrap().expose();
    assert_eq!(leaks(&secret, || drop(secret.to_vec())), 1);
    assert_eq!(leaks(&secret, || drop(Box::new((1_u8, secret)))), 1);
    // A buffer that grows leaves its content behind.
    let grow = || {
        let mut buffer = zeroize::Zeroizing::new(secret.to_vec());
        buffer.extend([0; 1000]);
    };
    assert_eq!(leaks(&secret, grow), 1);
    assert_eq!(leaks(&secret, || drop(vec![7_u8; 1000])), 0);
}

#[test]
fn secrets_are_wiped_wherever_they_were_moved() {
    let secret = *Secret32::random().unwrap().expose();
    let moved_about = || {
        let mut list = vec![Secret32::new(&secret)];
        for _ in 0..20 {
            list.push(Secret32::from_slice(&secret).unwrap());
        }
        let boxed: Vec<_> = list.into_iter().map(Box::new).collect();
        drop(boxed);
        let filled = Secret32::fill(|bytes| {
            bytes.copy_from_slice(&secret);
            Err::<(), _>("after all not")
        });
        assert!(filled.is_err());
    };
    assert_eq!(leaks(&secret, moved_about), 0);
}

#[test]
fn pins_are_wiped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pin");
    let text = "correct horse battery staple";
    crate::private_file::write_atomically(&path, text.as_bytes()).unwrap();
    let read = || {
        let pin = Pin::from_file(&path).unwrap();
        let copy = pin.clone();
        assert_eq!(copy.expose(), text);
    };
    assert_eq!(leaks(text.as_bytes(), read), 0);
    let typed = text.to_owned();
    assert_eq!(leaks(text.as_bytes(), || drop(Pin::new(typed))), 0);
}
