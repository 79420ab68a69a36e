//! Uploading and downloading media, thumbnails.

use std::io::Cursor;

use image::{DynamicImage, GenericImageView as _, ImageFormat};
use serde_json::{Value, json};

use crate::enclave::{Answer, Enclave, Member};

async fn upload(
    enclave: &Enclave,
    member: &Member,
    query: &str,
    content_type: &str,
    body: Vec<u8>,
) -> Answer {
    let path = format!("/_matrix/media/v3/upload{query}");
    let headers = [("content-type", content_type)];
    enclave.send("POST", &path, Some(&member.token), &headers, body).await
}

fn path_of(uri: &Value) -> String {
    uri.as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
}

async fn get(enclave: &Enclave, member: &Member, path: &str) -> Answer {
    enclave.call("GET", &format!("v1/media/{path}"), Some(&member.token), Value::Null).await
}

#[tokio::test]
async fn media_comes_back_as_it_was_and_does_no_harm() {
    let enclave = Enclave::open("open");
    let (alice, bob) = (enclave.member("alice", "A"), enclave.member("bob", "B"));
    let body: Vec<u8> = (0..700_000_u32).map(|number| number.to_le_bytes()[1]).collect();
    let query = "?filename=a%20%22picture%22.png";
    let uri = upload(&enclave, &alice, query, "image/png", body.clone()).await.ok();
    let media = path_of(&uri["content_uri"]);
    let answer = get(&enclave, &bob, &format!("download/{media}")).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.bytes, body);
    assert_eq!(answer.headers["content-type"], "image/png");
    assert_eq!(answer.headers["content-length"], "700000");
    let disposition = answer.headers["content-disposition"].to_str().unwrap();
    assert!(disposition.starts_with("inline; filename="), "{disposition}");
    assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    assert_eq!(answer.headers["cross-origin-resource-policy"], "cross-origin");
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("sandbox; default-src 'none';"));
    let named = get(&enclave, &bob, &format!("download/{media}/other.png")).await;
    assert!(named.headers["content-disposition"].to_str().unwrap().contains("other.png"));

    let page = upload(&enclave, &alice, "", "text/html", b"<script>".to_vec()).await.ok();
    let page = path_of(&page["content_uri"]);
    for path in [
        format!("/_matrix/client/v1/media/download/{page}"),
        format!("/_matrix/media/v3/download/{page}"),
    ] {
        let answer = enclave.send("GET", &path, Some(&bob.token), &[], Vec::new()).await;
        assert_eq!(answer.bytes, b"<script>");
        assert_eq!(answer.headers["content-disposition"], "attachment");
        let answer = enclave.send("GET", &path, None, &[], Vec::new()).await;
        assert_eq!(answer.error(), (401, "M_MISSING_TOKEN".into()));
    }
    for unknown in ["alpha.test/none", "bravo.test/none"] {
        let answer = get(&enclave, &bob, &format!("download/{unknown}")).await;
        assert_eq!(answer.error(), (404, "M_NOT_FOUND".into()));
    }
}

#[tokio::test]
async fn large_uploads_are_refused() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    let config = get(&enclave, &alice, "config").await.ok();
    assert_eq!(config, json!({ "m.upload.size": 1_000_000 }));
    let old = enclave.send("GET", "/_matrix/media/v3/config", Some(&alice.token), &[], Vec::new());
    assert_eq!(old.await.ok(), config);
    let exact = upload(&enclave, &alice, "", "image/png", vec![0; 1_000_000]).await;
    assert_eq!(exact.status, 200);
    let answer = upload(&enclave, &alice, "", "image/png", vec![0; 1_000_001]).await;
    assert_eq!(answer.error(), (413, "M_TOO_LARGE".into()));
}

#[tokio::test]
async fn announced_media_is_uploaded_once_by_its_owner() {
    let enclave = Enclave::open("open");
    let (alice, bob) = (enclave.member("alice", "A"), enclave.member("bob", "B"));
    let create = "/_matrix/media/v1/create";
    let made = enclave.send("POST", create, Some(&alice.token), &[], Vec::new()).await.ok();
    assert!(made["unused_expires_at"].as_u64().unwrap() > 1_000_000_000_000);
    let media = path_of(&made["content_uri"]);
    let early = get(&enclave, &bob, &format!("download/{media}")).await;
    assert_eq!(early.error(), (504, "M_NOT_YET_UPLOADED".into()));
    let path = format!("/_matrix/media/v3/upload/{media}");
    let put = |member: &Member| {
        let (enclave, path, token) = (&enclave, &path, member.token.clone());
        async move { enclave.send("PUT", path, Some(&token), &[], b"x".to_vec()).await }
    };
    assert_eq!(put(&bob).await.error(), (403, "M_FORBIDDEN".into()));
    put(&alice).await.ok();
    assert_eq!(put(&alice).await.error(), (409, "M_CANNOT_OVERWRITE_MEDIA".into()));
    assert_eq!(get(&enclave, &bob, &format!("download/{media}")).await.bytes, b"x");
}

#[tokio::test]
async fn thumbnails_are_made_of_images_only() {
    let enclave = Enclave::open("open");
    let alice = enclave.member("alice", "A");
    let mut png = Cursor::new(Vec::new());
    DynamicImage::new_rgb8(900, 300).write_to(&mut png, ImageFormat::Png).unwrap();
    let uri = upload(&enclave, &alice, "", "image/png", png.into_inner()).await.ok();
    let media = path_of(&uri["content_uri"]);
    for (query, expected) in [
        ("width=64&height=64&method=crop", (96, 96)),
        ("width=300&height=200&method=scale", (320, 107)),
        ("width=300&height=200", (320, 107)),
    ] {
        for _ in 0..2 {
            let answer = get(&enclave, &alice, &format!("thumbnail/{media}?{query}")).await;
            assert_eq!(answer.status, 200, "{query}");
            assert_eq!(answer.headers["content-type"], "image/jpeg");
            let image = image::load_from_memory(&answer.bytes).unwrap();
            assert_eq!(image.dimensions(), expected, "{query}");
        }
    }
    let text = upload(&enclave, &alice, "", "image/png", b"no image".to_vec()).await.ok();
    let text = path_of(&text["content_uri"]);
    let answer = get(&enclave, &alice, &format!("thumbnail/{text}?width=32&height=32")).await;
    assert_eq!(answer.error(), (400, "M_UNKNOWN".into()));
}
