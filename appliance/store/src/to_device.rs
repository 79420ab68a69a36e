//! Messages to devices: an inbox per local device, an outbox per other server, both in order and exactly once.
//!
//! [Send-to-device messaging](https://spec.matrix.org/v1.16/client-server-api/#send-to-device-messaging). Olm breaks
//! when messages are lost, doubled or out of order, so what goes to other servers is numbered.

use std::collections::BTreeMap;

use ruma::{
    DeviceId, OwnedServerName, OwnedUserId, ServerName, TransactionId, UserId,
    api::federation::transactions::edu::DirectDeviceContent, events::AnyToDeviceEventContent,
    events::ToDeviceEventType, serde::Raw, to_device::DeviceIdOrAllDevices,
};
use rusqlite::params;
use sallyport_core::{incarnation::Incarnation, time::Millis};
use serde::Serialize;

use crate::{
    error::{Error, Result},
    pool::{Read, Write},
    value::to_sql,
};

/// Milliseconds for which a transaction id is remembered.
const TRANSACTION_MS: u64 = 24 * 60 * 60 * 1000;

/// Contents by recipient and device.
pub type ToDeviceMessages =
    BTreeMap<OwnedUserId, BTreeMap<DeviceIdOrAllDevices, Raw<AnyToDeviceEventContent>>>;

/// Messages of one request.
#[derive(Clone, Debug)]
pub struct ToDeviceSend {
    /// Who sends them.
    pub sender: OwnedUserId,
    /// From which device.
    pub device_id: ruma::OwnedDeviceId,
    /// Their type.
    pub kind: ToDeviceEventType,
    /// The client's id of the request: a repeated one does nothing.
    pub txn_id: ruma::OwnedTransactionId,
    /// What goes to whom.
    pub messages: ToDeviceMessages,
}

/// An event in a device's inbox.
#[derive(Serialize)]
struct Event<'a> {
    sender: &'a UserId,
    #[serde(rename = "type")]
    kind: &'a ToDeviceEventType,
    content: &'a Raw<AnyToDeviceEventContent>,
}

impl Read<'_> {
    /// Messages in a device's inbox with positions after `from` and up to `to`, in order, at most `limit`: each with
    /// its position and as an event in JSON.
    pub fn to_device_messages(
        &self,
        user_id: &UserId,
        device_id: &DeviceId,
        from: i64,
        to: i64,
        limit: usize,
    ) -> Result<Vec<(i64, String)>> {
        let mut statement = self.prepare(
            "SELECT position, event FROM to_device_inbox
             WHERE user_id = ?1 AND device_id = ?2 AND position > ?3 AND position <= ?4
             ORDER BY position LIMIT ?5",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![user_id.as_str(), device_id.as_str(), from, to, limit], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// What waits for another server with numbers after `after`, in order, at most `limit`: each with its number and
    /// as the content of an `m.direct_to_device` EDU in JSON.
    pub fn outgoing_to_device(
        &self,
        server: &ServerName,
        after: i64,
        limit: usize,
    ) -> Result<Vec<(i64, String)>> {
        let mut statement = self.prepare(
            "SELECT n, edu FROM to_device_outbox WHERE server = ?1 AND n > ?2 ORDER BY n LIMIT ?3",
        )?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = statement.query_map(params![server.as_str(), after, limit], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

impl Write<'_> {
    /// Delivers messages to local devices and queues those for other servers.
    /// Answers `false`, having done nothing, if the device has made this request before.
    pub fn send_to_device(&mut self, send: &ToDeviceSend, now: Millis) -> Result<bool> {
        if !self.begin_transaction(send, now)? {
            return Ok(false);
        }
        let mut remote: BTreeMap<OwnedServerName, ToDeviceMessages> = BTreeMap::new();
        for (user_id, messages) in &send.messages {
            if user_id.server_name() == self.server_name() {
                self.deliver(&send.sender, &send.kind, user_id, messages)?;
            } else {
                let server = remote.entry(user_id.server_name().to_owned()).or_default();
                server.insert(user_id.clone(), messages.clone());
            }
        }
        for (server, messages) in remote {
            let n = self.next_outgoing(&server, "to_device")?;
            let message_id = <&TransactionId>::from(n.to_string().as_str()).to_owned();
            let mut edu =
                DirectDeviceContent::new(send.sender.clone(), send.kind.clone(), message_id);
            edu.messages = messages;
            let edu = serde_json::to_string(&edu)
                .map_err(|error| Error::corrupt("to_device_outbox", error))?;
            self.prepare("INSERT INTO to_device_outbox (server, n, edu) VALUES (?1, ?2, ?3)")?
                .execute(params![server.as_str(), n, edu])?;
        }
        Ok(true)
    }

    /// Delivers what another server sent. Answers `false` if it was delivered before, or if the sender is not of that
    /// server.
    pub fn receive_to_device(
        &mut self,
        origin: &ServerName,
        incarnation: Incarnation,
        n: i64,
        edu: &DirectDeviceContent,
    ) -> Result<bool> {
        if edu.sender.server_name() != origin
            || !self.accept_incoming(origin, "to_device", incarnation, n)?
        {
            return Ok(false);
        }
        for (user_id, messages) in &edu.messages {
            if user_id.server_name() == self.server_name() {
                self.deliver(&edu.sender, &edu.ev_type, user_id, messages)?;
            }
        }
        Ok(true)
    }

    /// A device has seen its messages up to this position.
    pub fn delete_to_device_messages(
        &mut self,
        user_id: &UserId,
        device_id: &DeviceId,
        up_to: i64,
    ) -> Result<()> {
        self.prepare(
            "DELETE FROM to_device_inbox
             WHERE user_id = ?1 AND device_id = ?2 AND position <= ?3",
        )?
        .execute(params![user_id.as_str(), device_id.as_str(), up_to])?;
        Ok(())
    }

    /// Another server has acknowledged what waited for it up to this number.
    pub fn forget_outgoing_to_device(&mut self, server: &ServerName, up_to: i64) -> Result<()> {
        self.prepare("DELETE FROM to_device_outbox WHERE server = ?1 AND n <= ?2")?
            .execute(params![server.as_str(), up_to])?;
        Ok(())
    }

    fn deliver(
        &mut self,
        sender: &UserId,
        kind: &ToDeviceEventType,
        user_id: &UserId,
        messages: &BTreeMap<DeviceIdOrAllDevices, Raw<AnyToDeviceEventContent>>,
    ) -> Result<()> {
        let devices = self.device_ids(user_id)?;
        for (target, content) in messages {
            let event = serde_json::to_string(&Event { sender, kind, content })
                .map_err(|error| Error::corrupt("to_device_inbox", error))?;
            let wanted = |device: &&ruma::OwnedDeviceId| match target {
                DeviceIdOrAllDevices::DeviceId(id) => id == *device,
                DeviceIdOrAllDevices::AllDevices => true,
            };
            for device in devices.iter().filter(wanted) {
                let position = self.next_position();
                self.prepare(
                    "INSERT INTO to_device_inbox (user_id, device_id, position, event)
                     VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![
                    user_id.as_str(),
                    device.as_str(),
                    position,
                    event
                ])?;
                self.touch_user(user_id);
            }
        }
        Ok(())
    }

    /// Remembers a request; `false` if it is known. Old ones are forgotten along the way.
    fn begin_transaction(&mut self, send: &ToDeviceSend, now: Millis) -> Result<bool> {
        let oldest = Millis(now.0.saturating_sub(TRANSACTION_MS));
        self.prepare("DELETE FROM to_device_transactions WHERE created < ?1")?
            .execute([to_sql(oldest)])?;
        let new = self
            .prepare(
                "INSERT INTO to_device_transactions (user_id, device_id, type, txn_id, created)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                send.sender.as_str(),
                send.device_id.as_str(),
                send.kind.to_string(),
                send.txn_id.as_str(),
                to_sql(now)
            ])?;
        Ok(new > 0)
    }
}
