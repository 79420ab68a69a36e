//! The client-server API: one file per section of the
//! [specification](https://spec.matrix.org/v1.19/client-server-api/), in its order.

mod account;
mod account_data;
mod backups;
mod capabilities;
mod devices;
mod directory;
mod discovery;
mod interactive;
mod keys;
mod media;
mod membership;
mod modules;
mod presence;
mod profiles;
mod push;
mod receipts;
mod relations;
mod reporting;
mod rooms;
mod search;
mod send;
mod session;
mod state;
mod sync;
mod timeline;
mod to_device;
mod tokens;

use super::Routes;

/// The endpoints of all sections.
pub(super) fn routes() -> Routes {
    [
        discovery::routes(),
        session::routes(),
        account::routes(),
        capabilities::routes(),
        profiles::routes(),
        presence::routes(),
        media::routes(),
        to_device::routes(),
        devices::routes(),
        keys::routes(),
        backups::routes(),
        push::routes(),
        account_data::routes(),
        modules::routes(),
        sync::routes(),
        state::routes(),
        timeline::routes(),
        relations::routes(),
        send::routes(),
        rooms::routes(),
        directory::routes(),
        membership::routes(),
        receipts::routes(),
        reporting::routes(),
        search::routes(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
