//! Ids of 128 bits as people and programs write them: 32 hexadecimal digits.

/// The number that such a text stands for; `None` if it is anything else, a sign included.
pub(crate) fn parse_u128(text: &str) -> Option<u128> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u128::from_str_radix(text, 16).ok().filter(|_| digits)
}
