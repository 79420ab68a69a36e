//! The client-server API: one file per section of the
//! [specification](https://spec.matrix.org/v1.19/client-server-api/), in its order.

mod capabilities;
mod discovery;
mod session;

use super::Routes;

/// The endpoints of all sections.
pub(super) fn routes() -> Routes {
    [discovery::routes(), session::routes(), capabilities::routes()].into_iter().flatten().collect()
}
