//! `sallyctl certificate`: the enclave CA and the certificate that the box serves.

use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};
use http::Method;
use sallyport_core::{
    admin::{CertificateStatus, KeyPlace, path},
    limits::CERTIFICATES_BYTES_MAX,
};

use crate::{
    client::Box as TheBox,
    files,
    output::{self, Output},
};

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show the certificate, the enclave CA, and where their keys are.
    Show,
    /// Ask a higher CA for a certificate: writes a request (PKCS #10, PEM) that the box has signed.
    Request {
        /// Whose certificate is wanted.
        #[arg(long, value_enum, default_value_t = Of::Ca)]
        of: Of,
        /// Where to write it.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Install the chain that a higher CA gave for the enclave CA, so that devices that trust the higher one trust this box.
    Install {
        /// The chain in PEM: the enclave CA's certificate first, then those above it.
        file: PathBuf,
    },
}

/// Whose certificate is asked for.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Of {
    /// The enclave CA's.
    Ca,
    /// The box's own, if its key is in the token.
    Tls,
}

impl Command {
    pub(crate) fn run(self, the_box: &TheBox, out: &Output) -> anyhow::Result<()> {
        match self {
            Self::Show => {
                let status: CertificateStatus = the_box.ask(path::CERTIFICATE)?;
                out.show(&status, text)
            }
            Self::Request { of, out: file } => {
                let of = match of {
                    Of::Ca => "ca",
                    Of::Tls => "tls",
                };
                let path = format!("{}?of={of}", path::CERTIFICATE_REQUEST);
                let mut request = Vec::new();
                the_box.command_fetch(&path, vec![], &mut request)?;
                files::write_new(&file, &request)?;
                out.note(&format!(
                    "The request is in {}. Have the higher CA sign it, and install what it gives.",
                    file.display()
                ))
            }
            Self::Install { file } => {
                let chain = files::read(&file, CERTIFICATES_BYTES_MAX)?;
                let status: CertificateStatus =
                    the_box.send_bytes(Method::PUT, path::CERTIFICATE, vec![], &[], chain)?;
                out.show(&status, text)
            }
        }
    }
}

fn text(status: &CertificateStatus) -> String {
    let nothing = || "none yet".to_owned();
    let ca = status.ca.as_ref();
    let mut lines = vec![
        ("names", status.names.join(" ")),
        ("valid until", status.not_after.map_or_else(nothing, output::time)),
        ("its key", status.tls_key.as_ref().map_or_else(nothing, place)),
        ("enclave CA", ca.map_or_else(nothing, |ca| ca.sha256.clone())),
        ("the CA's key", ca.map_or_else(nothing, |ca| place(&ca.key))),
        ("higher CA", if status.vouched_for { "vouches for it" } else { "none" }.to_owned()),
    ];
    if let Some(waits) = &status.waits {
        lines.push(("WAITS", waits.clone()));
    }
    output::pairs(&lines)
}

/// Where a key is, in a few words.
pub(super) fn place(place: &KeyPlace) -> String {
    match place {
        KeyPlace::Token { key } => format!("in the token, {key}"),
        KeyPlace::Vault => "in the box's vault".to_owned(),
        KeyPlace::File => "IN A FILE, where it can be copied".to_owned(),
    }
}
