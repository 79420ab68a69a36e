//! Tokens: how clients name a point of the stream.
//!
//! `s{incarnation}_{position}_{to_device}_{typing}_{presence}` comes from a sync,
//! `t{incarnation}_{position}` from a page of a timeline. The incarnation is that of the database: after a restore from backup the same
//! position means something else.

use std::{fmt, str::FromStr};

use sallyport_core::incarnation::Incarnation;

/// A point of the stream: what is up to `position` is before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// First four bytes of the database's incarnation.
    pub incarnation: u32,
    /// Stream position.
    pub position: i64,
    /// What else a sync has told.
    pub told: Option<Told>,
}

/// What a sync has told besides the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Stream position of the newest message to the device. It lags behind while many wait.
    pub to_device: i64,
    /// Changes of who types.
    pub typing: u64,
    /// Changes of who is there.
    pub presence: u64,
}

/// Not a token of any box.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the token is not one that this server gives out")]
pub struct Malformed;

impl Token {
    /// A point of a timeline.
    #[must_use]
    pub fn of_page(incarnation: Incarnation, position: i64) -> Self {
        Self { incarnation: short(incarnation), position, told: None }
    }

    /// Where a sync ended.
    #[must_use]
    pub fn of_sync(incarnation: Incarnation, position: i64, told: Told) -> Self {
        Self { incarnation: short(incarnation), position, told: Some(told) }
    }

    /// Reads either form.
    ///
    /// # Errors
    /// [`Malformed`] if it is neither.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let rest = text.strip_prefix(['s', 't']).ok_or(Malformed)?;
        let parts: Vec<&str> = rest.split('_').collect();
        let (incarnation, position, told) = match (text.starts_with('s'), parts.as_slice()) {
            (true, &[incarnation, position, to_device, typing, presence]) => {
                let told = Told {
                    to_device: number(to_device)?,
                    typing: number(typing)?,
                    presence: number(presence)?,
                };
                (incarnation, position, Some(told))
            }
            (false, &[incarnation, position]) => (incarnation, position, None),
            _ => return Err(Malformed),
        };
        if incarnation.len() != 8 || !incarnation.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Malformed);
        }
        let incarnation = u32::from_str_radix(incarnation, 16).map_err(|_| Malformed)?;
        Ok(Self { incarnation, position: number(position)?, told })
    }

    /// Whether this database gave it out.
    #[must_use]
    pub fn is_of(&self, incarnation: Incarnation) -> bool {
        self.incarnation == short(incarnation)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { incarnation, position, told } = self;
        match told {
            Some(Told { to_device, typing, presence }) => {
                write!(f, "s{incarnation:08x}_{position}_{to_device}_{typing}_{presence}")
            }
            None => write!(f, "t{incarnation:08x}_{position}"),
        }
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, Malformed> {
    text.parse().map_err(|_| Malformed)
}

fn short(Incarnation([a, b, c, d, ..]): Incarnation) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_as_they_were_written() {
        let incarnation =
            Incarnation([0, 0x1b, 2, 0xff, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
        let told = Told { to_device: 11, typing: 34, presence: 5 };
        let sync = Token::of_sync(incarnation, 12, told);
        assert_eq!(sync.to_string(), "s001b02ff_12_11_34_5");
        assert_eq!(Token::parse("s001b02ff_12_11_34_5"), Ok(sync));
        let page = Token::of_page(incarnation, -5);
        assert_eq!(page.to_string(), "t001b02ff_-5");
        assert_eq!(Token::parse("t001b02ff_-5"), Ok(page));
        assert!(page.is_of(incarnation));
        assert!(!page.is_of(Incarnation([9; 16])));
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in [
            "",
            "s",
            "t",
            "12",
            "s001b02ff",
            "s001b02ff_1",
            "s001b02ff_1_2_3_4_5",
            "s001b02ff_1_2_3",
            "t001b02ff_1_2",
            "s001b02f_1_2_3_4",
            "sxyz00000_1_2_3_4",
            "s001b02ff_x_2_3_4",
            "s001b02ff_1_2_-3_4",
            "t001b02ff_99999999999999999999",
            "t+01b02ff_1",
            "s001b02ff_1_2_3_é",
        ] {
            assert_eq!(Token::parse(text), Err(Malformed), "{text}");
        }
    }
}
