//! Account data, tags, filters, push rules, pushers, profiles, presence, and what the box does not have.

use serde_json::{Value, json};

use crate::enclave::Enclave;

#[tokio::test]
async fn profiles_are_shown_to_those_who_could_have_an_account() {
    for (registration, status) in [("open", 200), ("closed", 401)] {
        let enclave = Enclave::open(registration);
        enclave.member("alice", "PHONE");
        let path = "v3/profile/@alice:alpha.test";
        let answer = enclave.call("GET", path, None, Value::Null).await;
        assert_eq!(answer.status, status, "{registration}");
    }
}

#[tokio::test]
async fn account_data_belongs_to_its_owner() {
    let enclave = Enclave::open("open");
    let (alice, bob) = (enclave.member("alice", "A"), enclave.member("bob", "B"));
    let path = "v3/user/@alice:alpha.test/account_data/com.test";
    let none = enclave.ask(&alice, "GET", path, Value::Null).await;
    assert_eq!(none.error(), (404, "M_NOT_FOUND".into()));
    enclave.ask(&alice, "PUT", path, json!({ "a": [1, 2.5] })).await.ok();
    assert_eq!(enclave.ask(&alice, "GET", path, Value::Null).await.ok(), json!({ "a": [1, 2.5] }));
    for (method, body) in [("GET", Value::Null), ("PUT", json!({}))] {
        let answer = enclave.ask(&bob, method, path, body).await;
        assert_eq!(answer.error(), (403, "M_FORBIDDEN".into()));
    }
    let rules = "v3/user/@alice:alpha.test/account_data/m.push_rules";
    assert_eq!(enclave.ask(&alice, "PUT", rules, json!({})).await.status, 405);
    let answer = enclave.ask(&alice, "PUT", path, json!([])).await;
    assert_eq!(answer.error(), (400, "M_BAD_JSON".into()));
}

#[tokio::test]
async fn rooms_have_tags_and_data() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    let room = "v3/user/@alice:alpha.test/rooms/!r:alpha.test";
    let tag = format!("{room}/tags/m.favourite");
    enclave.ask(&alice, "PUT", &tag, json!({ "order": 0.25 })).await.ok();
    let expected = json!({ "tags": { "m.favourite": { "order": 0.25 } } });
    let list = format!("{room}/tags");
    assert_eq!(enclave.ask(&alice, "GET", &list, Value::Null).await.ok(), expected);
    let data = format!("{room}/account_data/m.tag");
    assert_eq!(enclave.ask(&alice, "GET", &data, Value::Null).await.ok(), expected);
    enclave.ask(&alice, "DELETE", &tag, Value::Null).await.ok();
    let list = enclave.ask(&alice, "GET", &list, Value::Null).await.ok();
    assert_eq!(list, json!({ "tags": {} }));
}

#[tokio::test]
async fn filters_come_back() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    let filter = json!({ "room": { "state": { "lazy_load_members": true } } });
    let path = "v3/user/@alice:alpha.test/filter";
    let id = enclave.ask(&alice, "POST", path, filter.clone()).await.ok();
    let again = enclave.ask(&alice, "POST", path, filter.clone()).await.ok();
    assert_eq!(id, again);
    let path = format!("{path}/{}", id["filter_id"].as_str().unwrap());
    assert_eq!(enclave.ask(&alice, "GET", &path, Value::Null).await.ok(), filter);
    let none = enclave.ask(&alice, "GET", "v3/user/@alice:alpha.test/filter/x", Value::Null).await;
    assert_eq!(none.error(), (404, "M_NOT_FOUND".into()));
}

#[tokio::test]
async fn push_rules_begin_with_the_predefined_ones() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    for path in ["v3/pushrules/", "v3/pushrules", "v3/pushrules/global/"] {
        let rules = enclave.ask(&alice, "GET", path, Value::Null).await.ok();
        let rules = rules.get("global").unwrap_or(&rules);
        assert_eq!(rules["override"][0]["rule_id"], ".m.rule.master", "{path}");
    }
    let rule = "v3/pushrules/global/content/word";
    enclave
        .ask(&alice, "PUT", rule, json!({ "pattern": "cake", "actions": ["notify"] }))
        .await
        .ok();
    let stored = enclave.ask(&alice, "GET", rule, Value::Null).await.ok();
    assert_eq!((&stored["pattern"], &stored["enabled"]), (&json!("cake"), &json!(true)));
    let enabled = format!("{rule}/enabled");
    enclave.ask(&alice, "PUT", &enabled, json!({ "enabled": false })).await.ok();
    let answer = enclave.ask(&alice, "GET", &enabled, Value::Null).await.ok();
    assert_eq!(answer, json!({ "enabled": false }));
    let actions = "v3/pushrules/global/underride/.m.rule.message/actions";
    enclave.ask(&alice, "PUT", actions, json!({ "actions": [] })).await.ok();
    let answer = enclave.ask(&alice, "GET", actions, Value::Null).await.ok();
    assert_eq!(answer, json!({ "actions": [] }));
    enclave.ask(&alice, "DELETE", rule, Value::Null).await.ok();
    let gone = enclave.ask(&alice, "GET", rule, Value::Null).await;
    assert_eq!(gone.error(), (404, "M_NOT_FOUND".into()));
    let predefined = "v3/pushrules/global/override/.m.rule.master";
    let kept = enclave.ask(&alice, "DELETE", predefined, Value::Null).await;
    assert_eq!(kept.error(), (400, "M_INVALID_PARAM".into()));
    let data = "v3/user/@alice:alpha.test/account_data/m.push_rules";
    let data = enclave.ask(&alice, "GET", data, Value::Null).await.ok();
    let message = data["global"]["underride"].as_array().unwrap();
    let message = message.iter().find(|rule| rule["rule_id"] == ".m.rule.message").unwrap();
    assert_eq!(message["actions"], json!([]));
}

#[tokio::test]
async fn pushers_are_kept() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    let list = || enclave.ask(&alice, "GET", "v3/pushers", Value::Null);
    assert_eq!(list().await.ok(), json!({ "pushers": [] }));
    let pusher = json!({
        "app_id": "app", "pushkey": "key", "kind": "http", "app_display_name": "App",
        "device_display_name": "Phone", "lang": "en", "data": { "url": "https://push.test/" },
    });
    enclave.ask(&alice, "POST", "v3/pushers/set", pusher.clone()).await.ok();
    assert_eq!(list().await.ok(), json!({ "pushers": [pusher] }));
    let delete = json!({ "app_id": "app", "pushkey": "key", "kind": null });
    enclave.ask(&alice, "POST", "v3/pushers/set", delete).await.ok();
    assert_eq!(list().await.ok(), json!({ "pushers": [] }));
}

#[tokio::test]
async fn people_have_names_and_are_found_by_them() {
    let enclave = Enclave::open("open");
    let (alice, bob) = (enclave.member("alice", "A"), enclave.member("bob", "B"));
    let path = "v3/profile/@alice:alpha.test";
    assert_eq!(enclave.ask(&bob, "GET", path, Value::Null).await.ok(), json!({}));
    let name = format!("{path}/displayname");
    let body = json!({ "displayname": "Alice of Alpha" });
    enclave.ask(&alice, "PUT", &name, body.clone()).await.ok();
    assert_eq!(enclave.ask(&bob, "GET", &name, Value::Null).await.ok(), body);
    let other = enclave.ask(&bob, "PUT", &name, body.clone()).await;
    assert_eq!(other.error(), (403, "M_FORBIDDEN".into()));
    let avatar = format!("{path}/avatar_url");
    let bad = enclave.ask(&alice, "PUT", &avatar, json!({ "avatar_url": "https://x/y" })).await;
    assert_eq!(bad.error(), (400, "M_INVALID_PARAM".into()));
    enclave.ask(&alice, "PUT", &avatar, json!({ "avatar_url": "mxc://alpha.test/a" })).await.ok();
    let field = format!("{path}/org.example.rank");
    enclave.ask(&alice, "PUT", &field, json!({ "org.example.rank": { "n": 1 } })).await.ok();
    let expected = json!({
        "displayname": "Alice of Alpha", "avatar_url": "mxc://alpha.test/a",
        "org.example.rank": { "n": 1 },
    });
    assert_eq!(enclave.ask(&bob, "GET", path, Value::Null).await.ok(), expected);
    enclave.ask(&alice, "DELETE", &field, Value::Null).await.ok();
    let gone = enclave.ask(&bob, "GET", &field, Value::Null).await;
    assert_eq!(gone.error(), (404, "M_NOT_FOUND".into()));
    let unknown = enclave.ask(&bob, "GET", "v3/profile/@nobody:alpha.test", Value::Null).await;
    assert_eq!(unknown.error(), (404, "M_NOT_FOUND".into()));

    let search = |term: &str| {
        let body = json!({ "search_term": term });
        let (enclave, bob) = (&enclave, &bob);
        async move { enclave.ask(bob, "POST", "v3/user_directory/search", body).await.ok() }
    };
    let found = search("ALICE alpha").await;
    let person = json!({
        "user_id": "@alice:alpha.test", "display_name": "Alice of Alpha",
        "avatar_url": "mxc://alpha.test/a",
    });
    assert_eq!(found, json!({ "results": [person], "limited": false }));
    assert_eq!(search("zzz").await, json!({ "results": [], "limited": false }));
}

#[tokio::test]
async fn presence_is_what_members_say() {
    let enclave = Enclave::open("open");
    let (alice, bob) = (enclave.member("alice", "A"), enclave.member("bob", "B"));
    let path = "v3/presence/@alice:alpha.test/status";
    let before = enclave.ask(&bob, "GET", path, Value::Null).await.ok();
    assert_eq!(before, json!({ "presence": "offline" }));
    let body = json!({ "presence": "online", "status_msg": "here" });
    enclave.ask(&alice, "PUT", path, body).await.ok();
    let after = enclave.ask(&bob, "GET", path, Value::Null).await.ok();
    assert_eq!((&after["presence"], &after["status_msg"]), (&json!("online"), &json!("here")));
    let other = enclave.ask(&bob, "PUT", path, json!({ "presence": "offline" })).await;
    assert_eq!(other.error(), (403, "M_FORBIDDEN".into()));
}

#[tokio::test]
async fn what_the_box_does_not_have_is_empty() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    for path in ["v3/voip/turnServer", "v3/thirdparty/protocols"] {
        assert_eq!(enclave.ask(&alice, "GET", path, Value::Null).await.ok(), json!({}), "{path}");
    }
}
