//! [Device management](https://spec.matrix.org/v1.19/client-server-api/#device-management).

use std::sync::Arc;

use ruma::{
    OwnedDeviceId,
    api::client::{
        device::{
            Device, delete_device::v3 as delete_device, delete_devices::v3 as delete_devices,
            get_device::v3 as get_device, get_devices::v3 as get_devices,
            update_device::v3 as update_device,
        },
        uiaa::AuthData,
    },
};
use sallyport_core::limits::DISPLAY_NAME_BYTES_MAX;

use super::interactive;
use crate::{
    app::App,
    http::{Routes, error::ApiError, route::route},
    service::sessions::Identity,
};

/// The endpoints of this section.
pub(super) fn routes() -> Routes {
    vec![route(list), route(get), route(rename), route(delete), route(delete_many)]
}

async fn list(
    app: Arc<App>,
    identity: Identity,
    _: get_devices::Request,
) -> Result<get_devices::Response, ApiError> {
    let list = move |app: &App| app.store.read(|read| read.devices(&identity.user_id));
    let devices = app.run(list).await?;
    Ok(get_devices::Response::new(devices.into_iter().map(to_ruma).collect()))
}

async fn get(
    app: Arc<App>,
    identity: Identity,
    request: get_device::Request,
) -> Result<get_device::Response, ApiError> {
    let find =
        move |app: &App| app.store.read(|read| read.device(&identity.user_id, &request.device_id));
    let device = app.run(find).await?.ok_or_else(no_such_device)?;
    Ok(get_device::Response::new(to_ruma(device)))
}

async fn rename(
    app: Arc<App>,
    identity: Identity,
    request: update_device::Request,
) -> Result<update_device::Response, ApiError> {
    let update_device::Request { device_id, display_name, .. } = request;
    if display_name.as_ref().is_some_and(|name| name.len() > DISPLAY_NAME_BYTES_MAX) {
        return Err(ApiError::invalid_param("The name of the device is too long."));
    }
    let rename = move |app: &App| {
        let user_id = identity.user_id;
        app.store.write(move |write| match display_name {
            Some(name) => write.rename_device(&user_id, &device_id, Some(&name)),
            None => Ok(write.device(&user_id, &device_id)?.is_some()),
        })
    };
    if app.run(rename).await? { Ok(update_device::Response::new()) } else { Err(no_such_device()) }
}

async fn delete(
    app: Arc<App>,
    identity: Identity,
    request: delete_device::Request,
) -> Result<delete_device::Response, ApiError> {
    delete_confirmed(app, identity, request.auth, vec![request.device_id]).await?;
    Ok(delete_device::Response::new())
}

async fn delete_many(
    app: Arc<App>,
    identity: Identity,
    request: delete_devices::Request,
) -> Result<delete_devices::Response, ApiError> {
    delete_confirmed(app, identity, request.auth, request.devices).await?;
    Ok(delete_devices::Response::new())
}

async fn delete_confirmed(
    app: Arc<App>,
    identity: Identity,
    auth: Option<AuthData>,
    mut devices: Vec<OwnedDeviceId>,
) -> Result<(), ApiError> {
    devices.sort();
    let purpose = format!("delete {devices:?}");
    interactive::confirm(&app, &identity, auth, &purpose).await?;
    let delete = move |app: &App| {
        app.store.write(move |write| write.delete_devices(&identity.user_id, Some(&devices)))
    };
    app.run(delete).await.map(drop)
}

fn to_ruma(device: sallyport_store::Device) -> Device {
    let mut answer = Device::new(device.device_id);
    answer.display_name = device.display_name;
    answer.last_seen_ip = device.last_address;
    answer.last_seen_ts = device.last_seen.map(|time| time.to_matrix());
    answer
}

fn no_such_device() -> ApiError {
    ApiError::not_found("There is no such device.")
}
