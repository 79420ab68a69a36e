//! Tests of the tokens through their public face.

#[cfg(test)]
mod devices;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod helper;
#[cfg(test)]
mod hostile;
#[cfg(all(test, feature = "kryoptic"))]
mod kryoptic;
#[cfg(test)]
mod pkcs11;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod sandbox;
#[cfg(test)]
mod service;
#[cfg(test)]
mod softhsm;
#[cfg(test)]
mod software;
