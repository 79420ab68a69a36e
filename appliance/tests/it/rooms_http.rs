//! The endpoints of rooms over HTTP, as a client calls them.

use std::{collections::BTreeSet, time::Duration};

use axum::{Router, body::Body};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use sallyport::{config::Api, http::router};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::member::open_with;

/// Someone with an access token.
struct Client {
    router: Router,
    user_id: String,
    token: String,
}

impl Client {
    async fn register(router: &Router, name: &str) -> Self {
        let mut client =
            Self { router: router.clone(), user_id: String::new(), token: String::new() };
        let account = json!({ "username": name, "password": "correct horse battery" });
        let (_, asked) = client.call("POST", "/_matrix/client/v3/register", &account).await;
        let session = &asked["session"];
        let auth = json!({ "type": "m.login.dummy", "session": session });
        let account =
            json!({ "username": name, "password": "correct horse battery", "auth": auth });
        let account = client.ok("POST", "/_matrix/client/v3/register", &account).await;
        client.user_id = account["user_id"].as_str().unwrap().to_owned();
        client.token = account["access_token"].as_str().unwrap().to_owned();
        client
    }

    async fn call(&self, method: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path);
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        let response = self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    async fn ok(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert_eq!(status, StatusCode::OK, "{method} {path}: {answer}");
        answer
    }

    async fn get(&self, path: &str) -> Value {
        self.ok("GET", path, &Value::Null).await
    }

    async fn fails(&self, method: &str, path: &str, body: &Value) -> (StatusCode, String) {
        let (status, answer) = self.call(method, path, body).await;
        (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
    }

    async fn create(&self, body: &Value) -> String {
        let created = self.ok("POST", "/_matrix/client/v3/createRoom", body).await;
        created["room_id"].as_str().unwrap().to_owned()
    }

    async fn send(&self, room: &str, txn_id: &str, body: &str) -> String {
        let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/{txn_id}");
        let content = json!({ "msgtype": "m.text", "body": body });
        let sent = self.ok("PUT", &path, &content).await;
        sent["event_id"].as_str().unwrap().to_owned()
    }
}

fn open_box(folder: &tempfile::TempDir) -> Router {
    let app = open_with(folder.path(), "[registration]\nmode = 'open'\n");
    router(app, &BTreeSet::from([Api::Client]))
}

#[tokio::test]
async fn a_conversation() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let room = alice
        .create(&json!({ "preset": "private_chat", "name": "Watch", "invite": [bob.user_id] }))
        .await;

    let first = bob.get("/_matrix/client/v3/sync").await;
    assert!(first["rooms"]["invite"][&room]["invite_state"]["events"].is_array());
    // Without a body, as some clients do.
    let joined = bob.ok("POST", &format!("/_matrix/client/v3/join/{room}"), &Value::Null).await;
    assert_eq!(joined["room_id"], room.as_str());
    let event_id = alice.send(&room, "1", "hello").await;
    assert_eq!(alice.send(&room, "1", "hello").await, event_id);

    let since = first["next_batch"].as_str().unwrap();
    let second = bob.get(&format!("/_matrix/client/v3/sync?since={since}")).await;
    let events = second["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    let last = events.last().unwrap();
    assert_eq!(last["event_id"], event_id.as_str());
    assert!(last["unsigned"]["age"].is_u64());
    assert!(last["unsigned"].get("transaction_id").is_none());
    assert!(last.get("room_id").is_none());

    let base = format!("/_matrix/client/v3/rooms/{room}");
    let one = bob.get(&format!("{base}/event/{event_id}")).await;
    assert_eq!(one["room_id"], room.as_str());
    let page = bob.get(&format!("{base}/messages?dir=b&limit=1")).await;
    assert_eq!(page["chunk"][0]["event_id"], event_id.as_str());
    let end = page["end"].as_str().unwrap();
    let page = bob.get(&format!("{base}/messages?dir=b&limit=1&from={end}")).await;
    assert_eq!(page["chunk"][0]["type"], "m.room.member");
    let context = bob.get(&format!("{base}/context/{event_id}?limit=4")).await;
    assert_eq!(context["event"]["event_id"], event_id.as_str());
    assert_eq!(context["events_before"][0]["type"], "m.room.member");
    let name = bob.get(&format!("{base}/state/m.room.name")).await;
    assert_eq!(name, json!({ "name": "Watch" }));
    let name = bob.get(&format!("{base}/state/m.room.name/?format=event")).await;
    assert_eq!(name["content"]["name"], "Watch");
    let members = bob.get(&format!("{base}/members?not_membership=leave")).await;
    assert_eq!(members["chunk"].as_array().unwrap().len(), 2);
    let joined = bob.get(&format!("{base}/joined_members")).await;
    assert_eq!(joined["joined"].as_object().unwrap().len(), 2);
    let near = format!("/_matrix/client/v1/rooms/{room}/timestamp_to_event?ts=0&dir=f");
    assert!(bob.get(&near).await["event_id"].is_string());
    let rooms = bob.get("/_matrix/client/v3/joined_rooms").await;
    assert_eq!(rooms["joined_rooms"], json!([room]));
}

#[tokio::test]
async fn a_long_poll_hears_of_messages_typing_and_receipts() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let room = alice.create(&json!({ "preset": "public_chat" })).await;
    bob.ok("POST", &format!("/_matrix/client/v3/join/{room}"), &json!({})).await;
    let base = format!("/_matrix/client/v3/rooms/{room}");
    let mut since = bob.get("/_matrix/client/v3/sync").await["next_batch"].clone();
    let typing = format!("{base}/typing/{}", alice.user_id);
    let event_id = alice.send(&room, "0", "before").await;
    let receipt = format!("{base}/receipt/m.read/{event_id}");
    let steps = [
        ("PUT", format!("{base}/send/m.room.message/1"), json!({ "body": "hello" })),
        ("PUT", typing, json!({ "typing": true, "timeout": 30_000 })),
        ("POST", receipt, json!({})),
    ];
    since = news(&bob, &since).await["next_batch"].clone();
    let heard = |index: usize, joined: &Value| {
        let ephemeral = joined["ephemeral"]["events"].as_array().into_iter().flatten();
        let mut of_type = ephemeral
            .filter(|event| event["type"] == if index == 1 { "m.typing" } else { "m.receipt" });
        match index {
            0 => joined["timeline"]["events"][0]["content"]["body"] == "hello",
            1 => of_type.any(|event| event["content"]["user_ids"] == json!([alice.user_id])),
            _ => of_type
                .any(|event| event["content"][&event_id]["m.read"][&alice.user_id]["ts"].is_u64()),
        }
    };
    for (index, (method, path, body)) in steps.iter().enumerate() {
        let (mut answer, _) = tokio::join!(news(&bob, &since), alice.ok(method, path, body));
        // What was heard already may come a second time before it.
        while !heard(index, &answer["rooms"]["join"][&room]) {
            let next = answer["next_batch"].clone();
            answer = news(&bob, &next).await;
        }
        since = answer["next_batch"].clone();
    }
    // With nothing new the answer comes when the time is over, and says so.
    let path = format!("/_matrix/client/v3/sync?timeout=20&since={}", since.as_str().unwrap());
    let quiet = bob.get(&path).await;
    assert!(quiet.get("rooms").is_none(), "{quiet}");
}

#[tokio::test]
async fn messages_to_a_device_stay_until_it_says_to_have_them() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let since = bob.get("/_matrix/client/v3/sync").await["next_batch"].clone();
    for number in 0..3 {
        let path = format!("/_matrix/client/v3/sendToDevice/org.example/{number}");
        let messages = json!({ "messages": { &bob.user_id: { "*": { "number": number } } } });
        alice.ok("PUT", &path, &messages).await;
    }
    let numbers = |answer: &Value| {
        let events = answer["to_device"]["events"].as_array().cloned().unwrap_or_default();
        let number = |event: &Value| event["content"]["number"].as_u64().unwrap();
        events.iter().map(number).collect::<Vec<_>>()
    };
    let sync = |since: &Value| format!("/_matrix/client/v3/sync?since={}", since.as_str().unwrap());
    let first = bob.get(&sync(&since)).await;
    assert_eq!(numbers(&first), [0, 1, 2]);
    // The answer was lost: the device asks again.
    assert_eq!(numbers(&bob.get(&sync(&since)).await), [0, 1, 2]);
    assert!(numbers(&bob.get(&sync(&first["next_batch"])).await).is_empty());
    // Commands are committed in order: once this one is, the messages are deleted.
    bob.create(&json!({})).await;
    assert!(numbers(&bob.get(&sync(&since)).await).is_empty());
}

async fn news(client: &Client, since: &Value) -> Value {
    let path = format!("/_matrix/client/v3/sync?timeout=60000&since={}", since.as_str().unwrap());
    let sync = client.get(&path);
    tokio::time::timeout(Duration::from_secs(30), sync).await.unwrap()
}

#[tokio::test]
async fn refusals_have_the_codes_of_the_specification() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let room = alice.create(&json!({ "room_alias_name": "bridge" })).await;
    let base = format!("/_matrix/client/v3/rooms/{room}");
    let (bad, forbidden) = (StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN);
    let empty = json!({});
    let filter = "/_matrix/client/v3/sync?filter=nothing";
    let alias = "/_matrix/client/v3/directory/room/%23none:alpha.test";
    let invite = json!({ "user_id": "@carol:bravo.test" });
    for (client, method, path, body, status, code) in [
        (&bob, "GET", format!("{base}/state"), &empty, forbidden, "M_FORBIDDEN"),
        (&bob, "GET", format!("{base}/messages?dir=b"), &empty, forbidden, "M_FORBIDDEN"),
        (&bob, "GET", format!("{base}/initialSync"), &empty, forbidden, "M_FORBIDDEN"),
        (&bob, "POST", format!("{base}/join"), &empty, forbidden, "M_FORBIDDEN"),
        (&bob, "POST", format!("{base}/leave"), &empty, forbidden, "M_FORBIDDEN"),
        (&bob, "PUT", format!("{base}/send/m.x/1"), &empty, forbidden, "M_FORBIDDEN"),
        (&alice, "PUT", format!("{base}/send/m.x/1"), &json!({ "a": 1.5 }), bad, "M_BAD_JSON"),
        (&alice, "POST", format!("{base}/invite"), &invite, forbidden, "M_FORBIDDEN"),
        (&alice, "POST", format!("{base}/forget"), &empty, bad, "M_INVALID_PARAM"),
        (&alice, "GET", "/_matrix/client/v3/sync?since=x".into(), &empty, bad, "M_INVALID_PARAM"),
        (&alice, "GET", filter.into(), &empty, bad, "M_INVALID_PARAM"),
        (&alice, "GET", alias.into(), &empty, StatusCode::NOT_FOUND, "M_NOT_FOUND"),
        (
            &alice,
            "GET",
            format!("{base}/event/$none"),
            &empty,
            StatusCode::NOT_FOUND,
            "M_NOT_FOUND",
        ),
        (
            &alice,
            "POST",
            "/_matrix/client/v3/createRoom".into(),
            &json!({ "room_version": "1" }),
            bad,
            "M_UNSUPPORTED_ROOM_VERSION",
        ),
        (
            &alice,
            "POST",
            "/_matrix/client/v3/createRoom".into(),
            &json!({ "room_alias_name": "bridge" }),
            bad,
            "M_ROOM_IN_USE",
        ),
        (
            &alice,
            "PUT",
            format!("{base}/state/m.room.canonical_alias"),
            &json!({ "alias": "#none:alpha.test" }),
            bad,
            "M_BAD_ALIAS",
        ),
    ] {
        let answer = client.fails(method, &path, body).await;
        assert_eq!(answer, (status, code.to_owned()), "{method} {path}");
    }
}

#[tokio::test]
async fn reports_are_taken_of_what_members_see() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let room = alice.create(&json!({})).await;
    let event_id = alice.send(&room, "1", "hello").await;
    let of_event = format!("/_matrix/client/v3/rooms/{room}/report/{event_id}");
    let of_room = format!("/_matrix/client/v3/rooms/{room}/report");
    let of_user = "/_matrix/client/v3/users/@nobody:alpha.test/report".to_owned();
    let nowhere = "/_matrix/client/v3/rooms/!none:alpha.test/report".to_owned();
    let (reason, long) = (json!({ "reason": "bad" }), json!({ "reason": "x".repeat(5000) }));
    for (client, path, body, status) in [
        (&alice, &of_event, &reason, 200),
        (&alice, &of_event, &json!({ "score": -100 }), 200),
        (&alice, &of_event, &long, 400),
        (&bob, &of_event, &reason, 404),
        (&alice, &format!("{of_event}x"), &reason, 404),
        (&bob, &of_room, &reason, 200),
        (&bob, &nowhere, &reason, 404),
        (&bob, &of_user, &reason, 200),
        (&bob, &of_user, &long, 400),
    ] {
        let (found, answer) = client.call("POST", path, body).await;
        assert_eq!(found.as_u16(), status, "{path}: {answer}");
    }
}

#[tokio::test]
async fn the_directory_is_searched_by_type() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let space = json!({ "visibility": "public", "creation_content": { "type": "m.space" } });
    let space = alice.create(&space).await;
    let room = alice.create(&json!({ "visibility": "public" })).await;
    for (types, expected) in [
        (json!(["m.space"]), vec![&space]),
        (json!([null]), vec![&room]),
        (json!(["m.space", null]), vec![&room, &space]),
        (json!(["org.example"]), vec![]),
        (json!([]), vec![&room, &space]),
    ] {
        let body = json!({ "filter": { "room_types": types } });
        let page = alice.ok("POST", "/_matrix/client/v3/publicRooms", &body).await;
        let chunk = page["chunk"].as_array().unwrap();
        let mut found: Vec<_> =
            chunk.iter().map(|room| room["room_id"].as_str().unwrap()).collect();
        found.sort_unstable();
        let mut expected: Vec<_> = expected.into_iter().map(String::as_str).collect();
        expected.sort_unstable();
        assert_eq!(found, expected, "{types}");
    }
}

fn search(term: &str, more: &Value) -> Value {
    let mut criteria = json!({ "search_term": term, "event_context": { "before_limit": 1, "after_limit": 1, "include_profile": true } });
    criteria.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "search_categories": { "room_events": criteria } })
}

async fn find(client: &Client, from: Option<&str>, term: &str, more: &Value) -> Value {
    let from = from.map(|from| format!("?next_batch={from}")).unwrap_or_default();
    let path = format!("/_matrix/client/v3/search{from}");
    client.ok("POST", &path, &search(term, more)).await["search_categories"]["room_events"].clone()
}

fn found(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().cloned().unwrap_or_default();
    let id = |found: &Value| found["result"]["event_id"].as_str().unwrap().to_owned();
    results.iter().map(id).collect()
}

#[tokio::test]
async fn texts_are_found_in_the_rooms_one_is_in() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let room = alice.create(&json!({ "name": "Anchor watch" })).await;
    let other = alice.create(&json!({ "preset": "public_chat" })).await;
    bob.ok("POST", &format!("/_matrix/client/v3/join/{other}"), &json!({})).await;
    let first = alice.send(&room, "1", "Drop the ANCHOR now").await;
    let second = alice.send(&other, "2", "the anchor holds").await;
    let third = alice.send(&room, "3", "anchor up").await;
    let none = json!({});

    let all = find(&alice, None, "anchor", &none).await;
    assert_eq!(found(&all)[..3], [third.clone(), second.clone(), first.clone()]);
    assert_eq!((&all["count"], &all["highlights"]), (&json!(4), &json!(["anchor"])));
    assert_eq!(found(&find(&alice, None, "now anchor", &none).await), std::slice::from_ref(&first));
    let name = json!({ "keys": ["content.name"], "include_state": true });
    let name = find(&alice, None, "anchor", &name).await;
    assert_eq!(name["results"][0]["result"]["type"], "m.room.name");
    assert!(name["state"][&room].is_array());
    let in_other = json!({ "filter": { "rooms": [&other] } });
    assert_eq!(
        found(&find(&alice, None, "anchor", &in_other).await),
        std::slice::from_ref(&second)
    );
    // Only what bob is in.
    assert_eq!(found(&find(&bob, None, "anchor", &none).await), std::slice::from_ref(&second));
    assert!(found(&find(&bob, None, " ", &none).await).is_empty());

    let context = &find(&alice, None, "now", &none).await["results"][0]["context"];
    assert_eq!(context["events_after"][0]["event_id"], third.as_str());
    assert_eq!(context["events_before"].as_array().unwrap().len(), 1);
    assert!(context["profile_info"][&alice.user_id].is_object());
    let from = context["end"].as_str().unwrap();
    let path = format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1&from={from}");
    assert_eq!(alice.get(&path).await["chunk"][0]["event_id"], third.as_str());

    // Page by page, without what is redacted.
    let path = format!("/_matrix/client/v3/rooms/{room}/redact/{first}/r");
    alice.ok("PUT", &path, &none).await;
    let by_two = json!({ "filter": { "limit": 2 }, "keys": ["content.body"] });
    let page = find(&alice, None, "anchor", &by_two).await;
    assert_eq!(found(&page), [third, second]);
    let next = page["next_batch"].as_str().unwrap();
    let page = find(&alice, Some(next), "anchor", &by_two).await;
    assert!(found(&page).is_empty() && page.get("next_batch").is_none(), "{page}");
}

#[tokio::test]
async fn a_room_is_searched_with_the_one_it_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let old = alice.create(&json!({ "room_version": "10" })).await;
    let before = alice.send(&old, "1", "needle").await;
    let path = format!("/_matrix/client/v3/rooms/{old}/upgrade");
    let upgraded = alice.ok("POST", &path, &json!({ "new_version": "12" })).await;
    let new = upgraded["replacement_room"].as_str().unwrap();
    let after = alice.send(new, "2", "needle").await;
    let both = find(&alice, None, "needle", &json!({ "filter": { "rooms": [new] } })).await;
    assert_eq!(found(&both), [after, before.clone()]);
    let one = find(&alice, None, "needle", &json!({ "filter": { "rooms": [old] } })).await;
    assert_eq!(found(&one), [before]);
}

#[tokio::test]
async fn notifications_are_paged() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let room = alice.create(&json!({ "preset": "public_chat" })).await;
    bob.ok("POST", &format!("/_matrix/client/v3/join/{room}"), &json!({})).await;
    let first = alice.send(&room, "1", "one").await;
    let second = alice.send(&room, "2", "two").await;
    let path = "/_matrix/client/v3/notifications?limit=1";
    let page = bob.get(path).await;
    let newest = &page["notifications"][0];
    assert_eq!((&newest["event"]["event_id"], &newest["room_id"]), (&json!(second), &json!(room)));
    assert_eq!((&newest["read"], &newest["actions"][0]), (&json!(false), &json!("notify")));
    let from = page["next_token"].as_str().unwrap();
    let page = bob.get(&format!("{path}&from={from}")).await;
    assert_eq!(page["notifications"][0]["event"]["event_id"], first.as_str());
    assert_eq!(bob.get(&format!("{path}&only=highlight")).await["notifications"], json!([]));
}

#[tokio::test]
async fn what_members_keep_for_a_room_follows_it_to_the_next_version() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let mut rooms = vec![
        alice
            .create(&json!({ "preset": "public_chat", "room_version": "12", "room_alias_name": "talk" }))
            .await,
    ];
    let join = async |who: &Client, room: &str| {
        who.ok("POST", &format!("/_matrix/client/v3/join/{room}"), &json!({})).await
    };
    join(&bob, &rooms[0]).await;
    let of = |who: &Client| format!("/_matrix/client/v3/user/{}", who.user_id);
    for who in [&alice, &bob] {
        let rule = format!("/_matrix/client/v3/pushrules/global/room/{}", rooms[0]);
        who.ok("PUT", &rule, &json!({ "actions": ["notify"] })).await;
        let mute = format!("/_matrix/client/v3/pushrules/global/override/{}", rooms[0]);
        let about = json!([{ "kind": "event_match", "key": "room_id", "pattern": rooms[0] }]);
        who.ok("PUT", &mute, &json!({ "conditions": about, "actions": [] })).await;
        let tag = format!("{}/rooms/{}/tags/m.favourite", of(who), rooms[0]);
        who.ok("PUT", &tag, &json!({ "order": 0.5 })).await;
        let direct = json!({ "@carol:alpha.test": [rooms[0]], "odd": 1 });
        who.ok("PUT", &format!("{}/account_data/m.direct", of(who)), &direct).await;
    }
    // Twelve has creators above all numbers, ten has none, and whoever moves the room must always be able to move it on.
    for version in ["10", "11", "12"] {
        let path = format!("/_matrix/client/v3/rooms/{}/upgrade", rooms[rooms.len() - 1]);
        let upgraded = alice.ok("POST", &path, &json!({ "new_version": version })).await;
        rooms.push(upgraded["replacement_room"].as_str().unwrap().to_owned());
        join(&bob, &rooms[rooms.len() - 1]).await;
    }
    for who in [&alice, &bob] {
        let rules = who.get("/_matrix/client/v3/pushrules/").await["global"].clone();
        let direct = who.get(&format!("{}/account_data/m.direct", of(who))).await;
        assert_eq!(direct, json!({ "@carol:alpha.test": rooms, "odd": 1 }));
        for room in &rooms {
            let ids = |kind: &str| {
                rules[kind].as_array().unwrap().iter().any(|rule| rule["rule_id"] == **room)
            };
            assert!(ids("room") && ids("override"), "{rules}");
            let tags = who.get(&format!("{}/rooms/{room}/tags", of(who))).await;
            assert_eq!(tags["tags"]["m.favourite"]["order"], 0.5);
        }
    }
    let alias = alice.get("/_matrix/client/v3/directory/room/%23talk:alpha.test").await;
    assert_eq!(alias["room_id"], rooms[3].as_str());
    let state =
        |room: &str| format!("/_matrix/client/v3/rooms/{room}/state/m.room.canonical_alias");
    assert_eq!(alice.get(&state(&rooms[2])).await, json!({}));
    assert_eq!(alice.get(&state(&rooms[3])).await["alias"], "#talk:alpha.test");
}

#[tokio::test]
async fn a_room_that_only_claims_to_replace_another_gets_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let old = alice.create(&json!({})).await;
    let tag = format!("/_matrix/client/v3/user/{}/rooms/{old}/tags/m.favourite", alice.user_id);
    alice.ok("PUT", &tag, &json!({ "order": 0.5 })).await;
    let creation = json!({ "predecessor": { "room_id": old, "event_id": "$any" } });
    let false_heir = bob
        .create(
            &json!({ "preset": "public_chat", "room_version": "11", "creation_content": creation }),
        )
        .await;
    alice.ok("POST", &format!("/_matrix/client/v3/join/{false_heir}"), &json!({})).await;
    let path = format!("/_matrix/client/v3/user/{}/rooms/{false_heir}/tags", alice.user_id);
    assert_eq!(alice.get(&path).await, json!({ "tags": {} }));
    let itself = format!("/_matrix/client/v3/rooms/{old}/state/m.room.tombstone");
    let (status, _) =
        alice.call("PUT", &itself, &json!({ "body": "", "replacement_room": old })).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn answers_say_what_clients_would_have_to_assume() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let room = alice.create(&json!({ "preset": "public_chat" })).await;
    let summary = bob.get(&format!("/_matrix/client/v1/room_summary/{room}")).await;
    assert_eq!(
        (&summary["join_rule"], &summary["membership"]),
        (&json!("public"), &json!("leave"))
    );
    let capabilities = alice.get("/_matrix/client/v3/capabilities").await;
    assert_eq!(capabilities["capabilities"]["m.change_password"]["enabled"], true);
    assert_eq!(alice.get("/_matrix/client/v3/account/3pid").await, json!({ "threepids": [] }));
    let odd = json!({ "visibility": "somewhat" });
    let (status, _) = alice.call("POST", "/_matrix/client/v3/createRoom", &odd).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_service_learns_whose_openid_token_it_was_shown() {
    let folder = tempfile::tempdir().unwrap();
    let router = open_box(&folder);
    let alice = Client::register(&router, "alice").await;
    let bob = Client::register(&router, "bob").await;
    let path = format!("/_matrix/client/v3/user/{}/openid/request_token", alice.user_id);
    let token = alice.ok("POST", &path, &json!({})).await;
    assert_eq!((&token["token_type"], &token["expires_in"]), (&json!("Bearer"), &json!(3600)));
    assert_eq!(token["matrix_server_name"], "alpha.test");
    let asked =
        |token: &str| format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
    let whose = bob.get(&asked(token["access_token"].as_str().unwrap())).await;
    assert_eq!(whose, json!({ "sub": alice.user_id }));
    let (status, _) = bob.call("GET", &asked("another"), &Value::Null).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert_eq!(bob.call("POST", &path, &json!({})).await.0, StatusCode::FORBIDDEN);
}
