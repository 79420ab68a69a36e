//! Calendar days, for clearances that end with one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::time::Millis;

const MS_PER_DAY: u64 = 24 * 60 * 60 * 1000;

/// A day of the Gregorian calendar in UTC, counted from 1970-01-01. Text form: `2027-06-30` (RFC 3339 `full-date`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date(u32);

impl Date {
    /// The last day that has a text form, 9999-12-31.
    pub const LAST: Self = Self(2_932_896);

    /// The day with a number, 0 being 1970-01-01; `None` after [`Date::LAST`].
    #[must_use]
    pub fn from_days(days: u32) -> Option<Self> {
        (days <= Self::LAST.0).then_some(Self(days))
    }

    /// Days since 1970-01-01.
    #[must_use]
    pub fn days(self) -> u32 {
        self.0
    }

    /// The day of a time; [`Date::LAST`] for times after it.
    #[must_use]
    pub fn of(time: Millis) -> Self {
        u32::try_from(time.0 / MS_PER_DAY).map_or(Self::LAST, |days| Self(days).min(Self::LAST))
    }

    /// The first moment after this day.
    #[must_use]
    pub fn end(self) -> Millis {
        Millis((u64::from(self.0) + 1) * MS_PER_DAY)
    }

    /// Year, month from 1, day of the month from 1 (Hinnant, "chrono-compatible low-level date algorithms").
    fn civil(self) -> (u32, u32, u32) {
        let days = self.0 + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        (year_of_era + era * 400 + u32::from(month <= 2), month, day)
    }

    /// Inverse of [`Date::civil`]; the result is only meaningful if it maps back.
    fn from_civil(year: u32, month: u32, day: u32) -> Option<Self> {
        let year = year.checked_sub(u32::from(month <= 2))?;
        let era = year / 400;
        let year_of_era = year % 400;
        let shifted_month = if month > 2 { month - 3 } else { month + 9 };
        let day_of_year = (153 * shifted_month + 2) / 5 + day.checked_sub(1)?;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        Self::from_days((era * 146_097 + day_of_era).checked_sub(719_468)?)
    }
}

/// A text that is not a calendar day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a date: write year-month-day, for example 2027-06-30")]
pub struct NotADate;

impl FromStr for Date {
    type Err = NotADate;

    fn from_str(text: &str) -> Result<Self, NotADate> {
        let digits = |part: &str, len: usize| {
            let good = part.len() == len && part.bytes().all(|b| b.is_ascii_digit());
            good.then(|| part.parse::<u32>().ok()).flatten().ok_or(NotADate)
        };
        let (year, rest) = text.split_once('-').ok_or(NotADate)?;
        let (month, day) = rest.split_once('-').ok_or(NotADate)?;
        let civil = (digits(year, 4)?, digits(month, 2)?, digits(day, 2)?);
        if !(1..=12).contains(&civil.1) {
            return Err(NotADate);
        }
        let date = Self::from_civil(civil.0, civil.1, civil.2).ok_or(NotADate)?;
        if date.civil() == civil { Ok(date) } else { Err(NotADate) }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.civil();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_days() {
        let table = [
            ("1970-01-01", 0),
            ("2000-02-29", 11_016),
            ("2026-11-22", 20_779),
            ("9999-12-31", 2_932_896),
        ];
        for (text, days) in table {
            assert_eq!(text.parse::<Date>().unwrap().days(), days, "{text}");
            assert_eq!(Date::from_days(days).unwrap().to_string(), text);
        }
        assert_eq!(Date::from_days(0).unwrap().end(), Millis(86_400_000));
        assert_eq!(Date::of(Millis(86_400_000)).to_string(), "1970-01-02");
    }

    #[test]
    fn malformed_days() {
        for text in [
            "",
            "2027",
            "2027-6-30",
            "30.06.2027",
            "2027-02-29",
            "2027-13-01",
            "2027-00-10",
            "2027-01-00",
            "2027-01-32",
            "1969-12-31",
            "10000-01-01",
            "2027-01-+1",
            "2027-01-01T00:00Z",
        ] {
            assert_eq!(text.parse::<Date>(), Err(NotADate), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_and_day_are_the_same_thing(days in 0..=Date::LAST.days()) {
            let date = Date::from_days(days).unwrap();
            prop_assert_eq!(date.to_string().parse::<Date>(), Ok(date));
        }
    }
}
