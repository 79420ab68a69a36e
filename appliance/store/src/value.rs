//! From and to what SQL can hold: times, identifiers and JSON.

use ruma::{DeviceId, OwnedDeviceId, OwnedUserId, UserId};
use sallyport_core::time::Millis;

use crate::error::{Error, Result};

/// A time as SQL holds it.
pub(crate) fn to_sql(time: Millis) -> i64 {
    i64::try_from(time.0).unwrap_or(i64::MAX)
}

/// A time from SQL.
pub(crate) fn millis(value: i64) -> Millis {
    Millis(u64::try_from(value).unwrap_or_default())
}

/// A user id from SQL.
pub(crate) fn user_id(table: &'static str, value: &str) -> Result<OwnedUserId> {
    UserId::parse(value).map_err(|error| Error::corrupt(table, error))
}

/// A device id from SQL.
pub(crate) fn device_id(value: &str) -> OwnedDeviceId {
    <&DeviceId>::from(value).to_owned()
}

/// A count that SQL made.
pub(crate) fn count(value: i64) -> usize {
    usize::try_from(value).unwrap_or_default()
}
