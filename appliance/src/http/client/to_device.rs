//! [Send-to-device messaging](https://spec.matrix.org/v1.19/client-server-api/#send-to-device-messaging).

use std::sync::Arc;

use ruma::api::client::to_device::send_event_to_device::v3 as send_event;
use sallyport_core::limits::TO_DEVICE_RECIPIENTS_MAX;
use sallyport_store::ToDeviceSend;

use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::sessions::Identity,
};

/// The endpoint of this section.
pub(super) fn routes() -> Routes {
    vec![route(send)]
}

async fn send(
    app: Arc<App>,
    identity: Identity,
    request: send_event::Request,
) -> Result<send_event::Response, ApiError> {
    let recipients: usize = request.messages.values().map(|devices| devices.len()).sum();
    if recipients > TO_DEVICE_RECIPIENTS_MAX {
        return Err(ApiError::invalid_param("The request names too many devices."));
    }
    let send = ToDeviceSend {
        sender: identity.user_id,
        device_id: identity.device_id,
        kind: request.event_type,
        txn_id: request.txn_id,
        messages: request.messages,
    };
    let now = (app.clock)();
    app.run(move |app| app.store.write(move |write| write.send_to_device(&send, now))).await?;
    Ok(send_event::Response::new())
}
