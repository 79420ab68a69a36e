//! Tests of the homeserver in its own process, without sockets.

#[cfg(test)]
mod accounts;
#[cfg(test)]
mod administration;
#[cfg(test)]
mod approvals;
#[cfg(test)]
mod bundles;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod enclave;
#[cfg(test)]
mod frame;
#[cfg(test)]
mod ignoring;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod media;
#[cfg(test)]
mod member;
#[cfg(test)]
mod months;
#[cfg(test)]
mod notifications;
#[cfg(test)]
mod officers;
#[cfg(test)]
mod relations;
#[cfg(test)]
mod rooms;
#[cfg(test)]
mod rooms_http;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod settings;
#[cfg(test)]
mod signing;
#[cfg(test)]
mod sync;
#[cfg(test)]
mod sync_gaps;
#[cfg(test)]
mod sync_resolution;
#[cfg(test)]
mod trial;
