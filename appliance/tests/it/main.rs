//! Tests of the homeserver in its own process, without sockets.

mod frame;
