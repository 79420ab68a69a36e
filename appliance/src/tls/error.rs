//! Why no certificate can be served, asked for or installed.

use std::path::PathBuf;

use rustls_pki_types::pem;
use sallyport_hsm::KeyName;

use crate::{files, service::own_keys, vault};

/// Why no certificate can be served, asked for or installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] files::Error),
    /// A file does not hold what it should.
    #[error("{} is damaged; restore it from a backup", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A PEM file given by the operator holds no certificate or no key.
    #[error("{} is not a PEM file with a certificate chain or a private key", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: pem::Error,
    },
    /// The certificate and the key do not belong together, or are of an unknown kind.
    #[error("the certificate cannot be used")]
    Unusable(#[source] rustls::Error),
    /// A certificate cannot be made.
    #[error("a certificate cannot be issued")]
    Issue(#[source] rcgen::Error),
    /// A configured name is not one that the CA may certify.
    #[error(
        "tls.names: the enclave CA was founded for {permitted} and must not certify {name}; \
         use a name below these, or remove {} to found a new CA that all devices must trust anew",
        path.display()
    )]
    OutsideConstraints {
        /// The name that was asked for.
        name: String,
        /// The names that the CA was founded for.
        permitted: String,
        /// The CA's file.
        path: PathBuf,
    },
    /// The system's randomness failed.
    #[error("session tickets cannot be protected")]
    Tickets(#[source] rustls::Error),
    /// The vault does not keep the certificate's key.
    #[error("the certificate's key cannot be kept")]
    Vault(#[from] vault::Error),
    /// The serving certificate cannot be written down.
    #[error("the certificate's key cannot be written down")]
    Leaf(#[source] serde_json::Error),
    /// The kept certificate or key is no PEM.
    #[error("the certificate that the vault keeps is of another kind")]
    NoPem(#[source] pem::Error),
    /// A key is not to be had from the token.
    #[error("the key for certificates is not to be had")]
    Keys(#[from] own_keys::Error),
    /// The token did not sign a certificate.
    #[error("the token does not sign with {key}")]
    Token {
        /// The key.
        key: KeyName,
        /// What the token said.
        #[source]
        source: sallyport_hsm::Error,
    },
    /// The CA's key is in a token, and there is none in the configuration.
    #[error("the key {0} of the enclave CA is in a token: configure that token")]
    NoToken(KeyName),
    /// There is no CA yet: the token was never there.
    #[error(
        "there is no enclave CA yet: connect the token, the CA is founded as soon as it answers"
    )]
    NoAuthority,
    /// Certificate and key are given as files, so that there is no CA.
    #[error("the certificate is given as a file: there is no enclave CA")]
    GivenAsFiles,
    /// The TLS key is not one that stays.
    #[error(
        "the TLS key is made anew with each certificate: ask for a certificate of the enclave CA instead, or set tls.key_in = \"token\""
    )]
    PassingKey,
    /// What an administrator wants to install is not a chain for our CA.
    #[error("these certificates cannot be installed: {0}")]
    NotOurs(&'static str),
    /// The chain does not hold together, or does not let our CA certify its names.
    #[error("the chain does not vouch for {name}")]
    Chain {
        /// A name of the box.
        name: String,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
}

impl Error {
    /// Whether it may pass once the token is there.
    pub fn waits_for_token(&self) -> bool {
        matches!(
            self,
            Self::Token { .. }
                | Self::Keys(own_keys::Error::Token(_))
                | Self::NoToken(_)
                | Self::NoAuthority
        )
    }
}
