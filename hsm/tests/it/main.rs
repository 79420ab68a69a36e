//! Tests of the tokens through their public face.

mod pkcs11;
mod requests;
mod softhsm;
mod software;
