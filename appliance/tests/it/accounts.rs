//! Registering, logging in and out, refreshing, devices.

use std::time::Duration;

use sallyport::service::sessions::{self, DeviceWish, Fresh, SessionCache, TokenError};
use sallyport_core::time::Millis;
use serde_json::{Value, json};

use crate::enclave::{Enclave, Member, PASSWORD};

fn log_in(user: &str, password: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": user },
        "password": password,
    })
}

fn with_password(member: &Member, session: &Value, password: &str) -> Value {
    json!({
        "type": "m.login.password",
        "identifier": { "type": "m.id.user", "user": member.user_id },
        "password": password,
        "session": session,
    })
}

#[tokio::test]
async fn registering_takes_a_stage_and_a_free_name() {
    let enclave = Enclave::open("open");
    let register = |body| enclave.call("POST", "v3/register", None, body);
    let wish = json!({ "username": "alice", "password": PASSWORD });
    let asked = register(wish.clone()).await;
    assert_eq!(asked.status, 401);
    assert_eq!(asked.json["flows"], json!([{ "stages": ["m.login.dummy"] }]));
    let mut proved = wish;
    proved["auth"] = json!({ "type": "m.login.dummy", "session": asked.json["session"] });
    let made = register(proved.clone()).await.ok();
    assert_eq!(made["user_id"], "@alice:alpha.test");
    assert_eq!(register(proved).await.error(), (400, "M_USER_IN_USE".into()));

    let available = |name: &str| {
        let path = format!("v3/register/available?username={name}");
        let enclave = &enclave;
        async move { enclave.call("GET", &path, None, Value::Null).await }
    };
    assert_eq!(available("alice").await.error(), (400, "M_USER_IN_USE".into()));
    assert_eq!(available("A%20B").await.error(), (400, "M_INVALID_USERNAME".into()));
    assert_eq!(available("bob").await.ok()["available"], true);
    let weak = json!({
        "username": "bob", "password": "", "auth": { "type": "m.login.dummy" },
    });
    assert_eq!(register(weak).await.error(), (400, "M_WEAK_PASSWORD".into()));
    let capitals = json!({
        "username": "Carol", "password": "tests", "auth": { "type": "m.login.dummy" },
    });
    assert_eq!(register(capitals).await.ok()["user_id"], "@carol:alpha.test");
    let guest = enclave.call("POST", "v3/register?kind=guest", None, json!({})).await;
    assert_eq!(guest.error(), (403, "M_FORBIDDEN".into()));
}

#[tokio::test]
async fn a_closed_box_registers_nobody() {
    let enclave = Enclave::open("closed");
    let body = json!({ "username": "alice", "password": PASSWORD });
    let answer = enclave.call("POST", "v3/register", None, body).await;
    assert_eq!(answer.error(), (403, "M_FORBIDDEN".into()));
}

#[tokio::test]
async fn logging_in_says_the_same_for_a_wrong_password_and_an_unknown_user() {
    let enclave = Enclave::open("open");
    let alice = enclave.register("alice").await;
    let attempt = |body| enclave.call("POST", "v3/login", None, body);
    for user in ["alice", "@alice:alpha.test"] {
        let json = attempt(log_in(user, PASSWORD)).await.ok();
        assert_eq!(json["user_id"], alice.user_id.as_str());
        assert!(json.get("well_known").is_none(), "it would move clients elsewhere");
    }
    let wrong = attempt(log_in("alice", "wrong password")).await;
    for other in ["nobody", "@alice:bravo.test"] {
        let unknown = attempt(log_in(other, PASSWORD)).await;
        assert_eq!(unknown.json, wrong.json);
        assert_eq!(unknown.status, wrong.status);
    }
    assert_eq!(wrong.error(), (403, "M_FORBIDDEN".into()));
    let unknown_type = attempt(json!({ "type": "m.login.token", "token": "x" })).await;
    assert_eq!(unknown_type.error(), (400, "M_UNKNOWN".into()));
    let r0 = enclave.call("POST", "r0/login", None, log_in("alice", PASSWORD)).await.ok();
    let me = enclave.call("GET", "v3/account/whoami", r0["access_token"].as_str(), Value::Null);
    assert_eq!(
        me.await.ok(),
        json!({ "user_id": "@alice:alpha.test", "device_id": r0["device_id"] })
    );
}

#[tokio::test]
async fn guessing_is_slowed_down() {
    let enclave = Enclave::open("open");
    enclave.register("alice").await;
    for _ in 0..10 {
        let answer = enclave.call("POST", "v3/login", None, log_in("alice", "a guess")).await;
        assert_eq!(answer.status, 403);
    }
    let answer = enclave.call("POST", "v3/login", None, log_in("alice", PASSWORD)).await;
    assert_eq!(answer.error(), (429, "M_LIMIT_EXCEEDED".into()));
}

#[tokio::test]
async fn a_session_is_refreshed_and_the_old_tokens_end_with_the_first_use() {
    let enclave = Enclave::open("open");
    enclave.register("alice").await;
    let mut body = log_in("alice", PASSWORD);
    body["refresh_token"] = true.into();
    let first = enclave.call("POST", "v3/login", None, body).await.ok();
    assert_eq!(first["expires_in_ms"], 3_600_000);
    let who = |tokens: &Value| {
        let token = tokens["access_token"].as_str().unwrap().to_owned();
        let enclave = &enclave;
        async move { enclave.call("GET", "v3/account/whoami", Some(&token), Value::Null).await }
    };
    who(&first).await.ok();
    let refresh = |tokens: &Value| {
        let body = json!({ "refresh_token": tokens["refresh_token"] });
        enclave.call("POST", "v3/refresh", None, body)
    };
    let second = refresh(&first).await.ok();
    assert_ne!(second["refresh_token"], first["refresh_token"]);
    who(&first).await.ok();
    who(&second).await.ok();
    assert_eq!(who(&first).await.error(), (401, "M_UNKNOWN_TOKEN".into()));
    assert_eq!(refresh(&first).await.error(), (401, "M_UNKNOWN_TOKEN".into()));
    refresh(&second).await.ok();
}

#[test]
fn an_access_token_that_can_be_refreshed_expires() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    let store = &enclave.app.store;
    let now = Millis(1_000_000_000_000);
    let wish = DeviceWish { refresh: true, ..DeviceWish::default() };
    let started =
        sessions::start(store, alice.user_id, wish, now, &Fresh::new([7; 72], &enclave.app.pepper))
            .unwrap();
    let hash = enclave.app.pepper.token(&started.access_token);
    let at = |now: Millis| {
        sessions::authenticate(store, &SessionCache::default(), hash, None, now).map(drop)
    };
    let lifetime = started.expires_in.unwrap();
    at(now).unwrap();
    at(now.plus(lifetime - Duration::from_millis(1))).unwrap();
    assert!(matches!(at(now.plus(lifetime)), Err(TokenError::Expired)));
}

#[tokio::test]
async fn logging_out_ends_one_session_or_all() {
    let enclave = Enclave::open("open");
    let [a, b, c] = ["A", "B", "C"].map(|device| enclave.member("alice", device));
    enclave.ask(&a, "POST", "v3/logout", Value::Null).await.ok();
    let answer = enclave.ask(&a, "GET", "v3/account/whoami", Value::Null).await;
    assert_eq!(answer.error(), (401, "M_UNKNOWN_TOKEN".into()));
    enclave.ask(&b, "GET", "v3/account/whoami", Value::Null).await.ok();
    enclave.ask(&b, "POST", "v3/logout/all", json!({})).await.ok();
    for member in [&b, &c] {
        let answer = enclave.ask(member, "GET", "v3/account/whoami", Value::Null).await;
        assert_eq!(answer.status, 401);
    }
}

#[tokio::test]
async fn a_locked_account_can_only_log_out() {
    let enclave = Enclave::open("open");
    let alice = enclave.register("alice").await;
    enclave.ask(&alice, "GET", "v3/devices", Value::Null).await.ok();
    let user_id = alice.user_id.clone();
    enclave.app.store.write(move |write| write.set_user_locked(&user_id, true)).unwrap();
    let answer = enclave.ask(&alice, "GET", "v3/devices", Value::Null).await;
    assert_eq!(answer.json["soft_logout"], true);
    assert_eq!(answer.error(), (401, "M_USER_LOCKED".into()));
    let answer = enclave.call("POST", "v3/login", None, log_in("alice", PASSWORD)).await;
    assert_eq!(answer.error(), (401, "M_USER_LOCKED".into()));
    let answer = enclave.call("POST", "v3/login", None, log_in("alice", "wrong one")).await;
    assert_eq!(answer.error(), (403, "M_FORBIDDEN".into()));
    enclave.ask(&alice, "POST", "v3/logout", json!({})).await.ok();
}

#[tokio::test]
async fn devices_are_listed_named_and_deleted_with_the_password() {
    let enclave = Enclave::open("open");
    let alice = enclave.register("alice").await;
    let phone = enclave.member("alice", "PHONE");
    let path = "v3/devices/PHONE";
    enclave.ask(&alice, "PUT", path, json!({ "display_name": "my phone" })).await.ok();
    let device = enclave.ask(&alice, "GET", path, Value::Null).await.ok();
    assert_eq!(device["display_name"], "my phone");
    let devices = enclave.ask(&alice, "GET", "v3/devices", Value::Null).await.ok();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 2);
    let unknown = enclave.ask(&alice, "GET", "v3/devices/NONE", Value::Null).await;
    assert_eq!(unknown.error(), (404, "M_NOT_FOUND".into()));

    let asked = enclave.ask(&alice, "DELETE", path, Value::Null).await;
    assert_eq!(asked.status, 401);
    assert_eq!(asked.json["flows"], json!([{ "stages": ["m.login.password"] }]));
    assert_eq!(asked.json["completed"], json!([]));
    assert!(asked.json.get("errcode").is_none());
    let auth = with_password(&alice, &asked.json["session"], "wrong password");
    let wrong = enclave.ask(&alice, "DELETE", path, json!({ "auth": auth })).await;
    assert_eq!(wrong.json["session"], asked.json["session"]);
    assert_eq!(wrong.error(), (401, "M_FORBIDDEN".into()));
    let auth = with_password(&alice, &asked.json["session"], PASSWORD);
    let other = enclave.ask(&alice, "DELETE", "v3/devices/OTHER", json!({ "auth": auth })).await;
    assert_eq!(other.status, 403, "the session was opened for another device");
    enclave.ask(&alice, "DELETE", path, json!({ "auth": auth })).await.ok();
    let gone = enclave.ask(&phone, "GET", "v3/account/whoami", Value::Null).await;
    assert_eq!(gone.error(), (401, "M_UNKNOWN_TOKEN".into()));

    enclave.member("alice", "TABLET");
    let auth = with_password(&alice, &Value::Null, PASSWORD);
    let body = json!({ "devices": ["TABLET", "GONE"], "auth": auth });
    enclave.ask(&alice, "POST", "v3/delete_devices", body).await.ok();
}

#[tokio::test]
async fn a_new_password_logs_the_other_devices_out() {
    let enclave = Enclave::open("open");
    let alice = enclave.register("alice").await;
    let phone = enclave.member("alice", "PHONE");
    let auth = with_password(&alice, &Value::Null, PASSWORD);
    let body = json!({ "new_password": "another password", "auth": auth });
    enclave.ask(&alice, "POST", "v3/account/password", body).await.ok();
    enclave.ask(&alice, "GET", "v3/account/whoami", Value::Null).await.ok();
    assert_eq!(enclave.ask(&phone, "GET", "v3/devices", Value::Null).await.status, 401);
    let old = enclave.call("POST", "v3/login", None, log_in("alice", PASSWORD)).await;
    assert_eq!(old.status, 403);
    enclave.call("POST", "v3/login", None, log_in("alice", "another password")).await.ok();
}

#[tokio::test]
async fn a_deactivated_account_is_gone_and_its_name_with_it() {
    let enclave = Enclave::open("open");
    let alice = enclave.register("alice").await;
    let bob = enclave.member("bob", "B");
    let wish = json!({ "preset": "public_chat" });
    let room = enclave.ask(&bob, "POST", "v3/createRoom", wish).await.ok();
    let room = room["room_id"].as_str().unwrap();
    enclave.ask(&alice, "POST", &format!("v3/join/{room}"), json!({})).await.ok();
    let auth = with_password(&alice, &Value::Null, PASSWORD);
    enclave.ask(&alice, "POST", "v3/account/deactivate", json!({ "auth": auth })).await.ok();
    let path = format!("v3/rooms/{room}/joined_members");
    let members = enclave.ask(&bob, "GET", &path, Value::Null).await.ok();
    assert_eq!(members["joined"].as_object().unwrap().keys().collect::<Vec<_>>(), [&bob.user_id]);
    assert_eq!(enclave.ask(&alice, "GET", "v3/devices", Value::Null).await.status, 401);
    let login = enclave.call("POST", "v3/login", None, log_in("alice", PASSWORD)).await;
    assert_eq!(login.status, 403);
    let body = json!({
        "username": "alice", "password": PASSWORD, "auth": { "type": "m.login.dummy" },
    });
    let again = enclave.call("POST", "v3/register", None, body).await;
    assert_eq!(again.error(), (400, "M_USER_IN_USE".into()));
}
