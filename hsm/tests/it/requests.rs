//! What the tests have signed.

use sallyport_core::sign::{Policy, SigningRequest, context};

/// The tests run as this server.
pub(crate) fn policy() -> Policy {
    Policy { server_name: "alpha.example".try_into().unwrap() }
}

/// A federation request that differs by `n`.
pub(crate) fn x_matrix(n: u32) -> SigningRequest {
    let json = format!(
        r#"{{"method":"GET","uri":"/_matrix/federation/v1/event/{n}","origin":"alpha.example","destination":"bravo.example"}}"#
    );
    SigningRequest::XMatrix { json }
}

/// The same as if another server made it.
pub(crate) fn foreign() -> SigningRequest {
    let json = r#"{"method":"GET","uri":"/_matrix/x","origin":"bravo.example","destination":"alpha.example"}"#;
    SigningRequest::XMatrix { json: json.to_owned() }
}

/// A manifest with an arbitrary payload.
pub(crate) fn manifest() -> SigningRequest {
    let mut bytes = vec![0x84, 0x6a];
    bytes.extend(b"Signature1");
    bytes.extend([0x43, 0xa1, 0x01, 0x26]);
    bytes.push(0x40 + u8::try_from(context::MANIFEST.len()).unwrap());
    bytes.extend(context::MANIFEST);
    bytes.extend([0x41, 0x00]);
    SigningRequest::Manifest(bytes)
}
