//! The store over a real SQLite file: one binary.

#![cfg(test)]

mod accounts;
mod administration;
mod keys;
mod restore;
mod rooms;

use ruma::{OwnedUserId, UserId, server_name};
use sallyport_core::time::Millis;
use sallyport_store::{NewSession, NewTokens, Options, Store};

/// A store in a folder of its own.
struct Fixture {
    store: Store,
    _directory: tempfile::TempDir,
}

impl std::ops::Deref for Fixture {
    type Target = Store;

    fn deref(&self) -> &Store {
        &self.store
    }
}

fn open() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(Options {
        path: &directory.path().join("db"),
        server_name: server_name!("alpha.test"),
        fresh_incarnation: [1; 16],
        on_commit: Box::new(|_| {}),
    });
    Fixture { store: store.unwrap(), _directory: directory }
}

fn user(name: &str) -> OwnedUserId {
    UserId::parse(format!("@{name}")).unwrap()
}

/// An account with one device of each of these ids.
fn account(store: &Store, name: &str, devices: &[&str]) -> OwnedUserId {
    let user_id = user(name);
    let made = user_id.clone();
    let devices: Vec<String> = devices.iter().map(ToString::to_string).collect();
    store
        .write(move |write| {
            write.create_user(&made, Millis(1))?;
            for device in devices {
                let mut access = [0; 32];
                let name = format!("{made}{device}");
                for (to, from) in access.iter_mut().zip(name.bytes().rev()) {
                    *to = from;
                }
                let new = NewSession {
                    user_id: made.clone(),
                    device_id: device.as_str().into(),
                    display_name: None,
                    tokens: NewTokens { access, refresh: None, expires: None },
                };
                write.start_session(&new, Millis(2))?;
            }
            Ok::<_, sallyport_store::Error>(())
        })
        .unwrap();
    user_id
}
