//! Tests of the tokens through their public face.

mod requests;
mod software;
