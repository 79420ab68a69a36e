//! Little-endian numbers in a sector. What lies outside of it is zero, which no check of a boot sector lets pass.

/// The byte at a place.
#[must_use]
pub fn u8_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or_default()
}

/// The 16 bits at a place.
#[must_use]
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array(bytes, at))
}

/// The 32 bits at a place.
#[must_use]
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array(bytes, at))
}

/// The 64 bits at a place.
#[must_use]
pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array(bytes, at))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

/// UTF-16 as text; `None` if it is none.
pub(crate) fn text(units: &[u16]) -> Option<String> {
    char::decode_utf16(units.iter().copied()).collect::<Result<_, _>>().ok()
}
