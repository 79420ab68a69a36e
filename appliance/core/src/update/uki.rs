//! What a unified kernel image says of the root that it starts: the section `.cmdline` of a PE file (UAPI group, "Unified Kernel Image").

use std::ops::Range;

use crate::digest::Sha256;

/// Bytes at the beginning of a kernel image in which its table of sections lies.
pub const HEAD_BYTES: usize = 4096;
/// The section with the command line.
pub const COMMAND_LINE: &str = ".cmdline";
/// The section with the os-release of the system.
pub const OS_RELEASE: &str = ".osrel";

/// Bytes of a section that is text.
const TEXT_BYTES_MAX: u64 = 64 * 1024;

/// Where the first section of a name lies in the file, if its beginning is that of a PE file and the section is a short text.
#[must_use]
pub fn section(head: &[u8], name: &str) -> Option<Range<u64>> {
    const SECTION_BYTES: usize = 40;
    if head.get(..2)? != b"MZ" {
        return None;
    }
    let pe = usize::try_from(u32_at(head, 0x3c)?).ok()?;
    if head.get(pe..pe.checked_add(4)?)? != b"PE\0\0" {
        return None;
    }
    let sections = usize::from(u16_at(head, pe + 6)?);
    let table = pe + 24 + usize::from(u16_at(head, pe + 20)?);
    let headers = head.get(table..)?.chunks_exact(SECTION_BYTES).take(sections);
    let mut padded = [0; 8];
    padded.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
    let header = headers.into_iter().find(|header| header.starts_with(&padded))?;
    let (used, kept) = (u32_at(header, 8)?, u32_at(header, 16)?);
    let at = u64::from(u32_at(header, 20)?);
    let bytes = u64::from(used.min(kept));
    (bytes <= TEXT_BYTES_MAX).then_some(at..at + bytes)
}

/// The one root hash that a kernel's command line names.
#[must_use]
pub fn root_hash(command_line: &str) -> Option<Sha256> {
    let words = command_line.split(|c: char| c.is_whitespace() || c == '\0');
    let mut hashes = words.filter_map(|word| word.strip_prefix("roothash="));
    let hash = hashes.next()?.parse().ok()?;
    if hashes.next().is_some() { None } else { Some(hash) }
}

/// The value of a key in an os-release file, without quotes.
#[must_use]
pub fn os_release<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let value = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches(['"', '\'']))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at.checked_add(2)?)?.try_into().ok().map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PE file with these sections.
    fn image(sections: &[(&str, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 0x200];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[0x3c] = 0x80;
        bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
        bytes[0x86] = u8::try_from(sections.len()).unwrap();
        bytes[0x94] = 16;
        for (index, (name, content)) in sections.iter().enumerate() {
            let (header, at) = (0x80 + 24 + 16 + 40 * index, bytes.len());
            bytes[header..header + name.len()].copy_from_slice(name.as_bytes());
            let size = u32::try_from(content.len()).unwrap();
            bytes[header + 8..header + 12].copy_from_slice(&size.to_le_bytes());
            bytes[header + 16..header + 20].copy_from_slice(&512_u32.to_le_bytes());
            let place = u32::try_from(at).unwrap();
            bytes[header + 20..header + 24].copy_from_slice(&place.to_le_bytes());
            bytes.extend_from_slice(content);
            bytes.resize(at + 512, 0);
        }
        bytes
    }

    #[test]
    fn the_first_section_of_a_name_is_found() {
        let image = image(&[
            (".osrel", b"ID=x\nIMAGE_VERSION=\"0.2.0\"\n"),
            (".cmdline", b"ro"),
            (".cmdline", b"rw"),
        ]);
        let text = |name| {
            let place = section(&image[..0x200], name)?;
            let (start, end) = (usize::try_from(place.start), usize::try_from(place.end));
            std::str::from_utf8(&image[start.unwrap()..end.unwrap()]).ok()
        };
        assert_eq!(text(COMMAND_LINE), Some("ro"));
        assert_eq!(os_release(text(OS_RELEASE).unwrap(), "IMAGE_VERSION"), Some("0.2.0"));
        assert_eq!(text(".cmd"), None);
        for end in 0..248 {
            assert_eq!(section(&image[..end], COMMAND_LINE), None, "first {end} bytes");
        }
    }

    #[test]
    fn a_command_line_names_one_root() {
        let hash = Sha256::of(b"root");
        assert_eq!(root_hash(&format!("ro roothash={hash} quiet\n\0")), Some(hash));
        for other in [
            "ro quiet".to_owned(),
            "roothash=12".to_owned(),
            format!("roothash={hash} roothash={hash}"),
            format!("xroothash={hash}"),
        ] {
            assert_eq!(root_hash(&other), None, "{other}");
        }
    }
}
