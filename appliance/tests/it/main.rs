//! Tests of the homeserver in its own process, without sockets.

#[cfg(test)]
mod administration;
#[cfg(test)]
mod bundles;
#[cfg(test)]
mod frame;
#[cfg(test)]
mod member;
#[cfg(test)]
mod rooms;
#[cfg(test)]
mod rooms_http;
#[cfg(test)]
mod sync;
#[cfg(test)]
mod sync_gaps;
