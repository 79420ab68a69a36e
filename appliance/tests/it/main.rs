//! Tests of the homeserver in its own process, without sockets.

#[cfg(test)]
mod bundles;
#[cfg(test)]
mod frame;
