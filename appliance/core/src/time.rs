//! Time as a value: there is no clock in this crate.

use std::time::Duration;

use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch, as the box's clock says.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// This time and a duration later; the largest time if there is no such.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How much later this time is than another; zero if it is not.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The specification's timestamp type; the largest that it can hold if this does not fit.
    #[must_use]
    pub fn to_matrix(self) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::try_from(self.0).unwrap_or(UInt::MAX))
    }
}

impl From<MilliSecondsSinceUnixEpoch> for Millis {
    fn from(time: MilliSecondsSinceUnixEpoch) -> Self {
        Self(time.0.into())
    }
}
