//! `sallyctl update make`: for those who build releases.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use ed25519_dalek::Signer as _;
use p256::pkcs8::DecodePrivateKey as _;
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use sallyport_core::{
    digest::Sha256,
    sign::{Algorithm, KeyRole, Policy, PublicKey, Signature, SigningRequest},
    time::Millis,
    update::{self, Manifest, Version},
};
use sallyport_hsm::KeyName;

use crate::{
    command::signer::{self, TokenArgs},
    files,
    output::{self, Output},
    update::file::{UpdateFile, payload},
};

#[derive(Args)]
pub(crate) struct MakeArgs {
    /// The version.
    #[arg(long = "release", value_name = "VERSION")]
    version: Version,
    /// The root file system.
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// Its hash tree, as `veritysetup format` writes it.
    #[arg(long, value_name = "FILE")]
    verity: PathBuf,
    /// The unified kernel image, signed for Secure Boot.
    #[arg(long, value_name = "FILE")]
    uki: PathBuf,
    /// The file with the root hash.
    #[arg(long, value_name = "FILE")]
    root_hash: PathBuf,
    /// The schema of the database, as `sallyport version --schema` prints it.
    #[arg(long)]
    schema: u32,
    /// The oldest version that a box takes once this one runs.
    #[arg(long, value_name = "VERSION")]
    floor: Version,
    /// The oldest version that this one may be installed over.
    #[arg(long, value_name = "VERSION")]
    from: Version,
    /// When it was built, in seconds since 1970: the release's SOURCE_DATE_EPOCH.
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    built: u64,
    /// One line about the release.
    #[arg(long, value_name = "TEXT", default_value = "")]
    notes: String,
    /// A file with the release key: PKCS#8 in PEM, Ed25519 or P-256. The file that is made is the same each time.
    #[arg(long, value_name = "FILE", conflicts_with = "token", required_unless_present = "token")]
    key: Option<PathBuf>,
    #[command(flatten)]
    token: Option<TokenArgs>,
    /// The release key, if the token has several.
    #[arg(long, value_name = "NAME", requires = "token")]
    key_name: Option<KeyName>,
    /// Where to write the update: `sallyport-VERSION.update`.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl MakeArgs {
    pub(crate) fn run(&self, out: &Output) -> anyhow::Result<()> {
        const ROOT_HASH_BYTES_MAX: usize = 128;
        let root_hash =
            String::from_utf8_lossy(&files::read(&self.root_hash, ROOT_HASH_BYTES_MAX)?)
                .trim()
                .parse()
                .with_context(|| format!("{} is no root hash", self.root_hash.display()))?;
        let manifest = Manifest {
            version: self.version,
            floor: self.floor,
            from: self.from,
            built: Millis(self.built.saturating_mul(1000)),
            root: payload(&self.root)?,
            tree: payload(&self.verity)?,
            uki: payload(&self.uki)?,
            root_hash,
            schema: self.schema,
            notes: self.notes.clone(),
        };
        let (head, key) = self.sign(&manifest)?;
        self.write(&head)?;
        let whole = UpdateFile::open(&self.out, std::slice::from_ref(&key))
            .and_then(|file| file.read_through(|_, _| {}));
        let whole = match whole {
            Ok(whole) => whole,
            Err(error) => {
                // It was made a moment ago, and nobody may take it for an update.
                std::fs::remove_file(&self.out).context("cannot remove what was made")?;
                return Err(error);
            }
        };
        #[derive(serde::Serialize)]
        struct Made {
            version: Version,
            sha256: Sha256,
            key: PublicKey,
        }
        out.show(&Made { version: self.version, sha256: whole.sha256, key }, |made| {
            output::pairs(&[
                ("version", made.version.to_string()),
                ("SHA-256", made.sha256.to_string()),
                ("release key", made.key.to_string()),
            ])
        })
    }

    fn sign(&self, manifest: &Manifest) -> anyhow::Result<(Vec<u8>, PublicKey)> {
        let nobody = signer::no_enclave();
        match (&self.key, &self.token) {
            (Some(path), _) => {
                let key = ReleaseKey::read(path)?;
                let public = key.public()?;
                let policy = Policy { server_name: nobody };
                let head = update::sign(manifest, &public, |request: SigningRequest| {
                    let bytes = request.bytes_to_sign(&policy)?;
                    anyhow::Ok(key.sign(&bytes))
                });
                Ok((head.map_err(|error| not_signed(&error))?, public))
            }
            (None, Some(token)) => {
                let signer = token.open(nobody)?;
                let (name, public) = signer.key(KeyRole::Release, self.key_name.as_ref())?;
                let head = update::sign(manifest, &public, |request| signer.sign(&name, &request));
                Ok((head.map_err(|error| not_signed(&error))?, public))
            }
            (None, None) => bail!("no release key: give --key or --token"),
        }
    }

    /// Writes what is signed, and the parts behind it.
    fn write(&self, head: &[u8]) -> anyhow::Result<()> {
        let shown = self.out.display();
        let mut file =
            OpenOptions::new().write(true).create_new(true).open(&self.out).with_context(|| {
                format!("cannot make {shown} (an existing file is not replaced)")
            })?;
        file.write_all(head).with_context(|| format!("cannot write {shown}"))?;
        for part in [&self.root, &self.verity, &self.uki] {
            io::copy(&mut files::open_foreign(part)?, &mut file)
                .with_context(|| format!("cannot copy {} to {shown}", part.display()))?;
        }
        file.sync_all().with_context(|| format!("cannot write {shown}"))
    }
}

/// `sallyctl update public-key`.
pub(super) fn public_key(path: &Path, out: &Output) -> anyhow::Result<()> {
    out.show(&ReleaseKey::read(path)?.public()?, |key| format!("{key}\n"))
}

fn not_signed<E: std::fmt::Display>(error: &sallyport_core::cose::SignError<E>) -> anyhow::Error {
    use sallyport_core::cose::SignError;
    match error {
        SignError::Signer(why) => anyhow::anyhow!("the update was not signed: {why}"),
        SignError::WrongKey => {
            anyhow::anyhow!("the release key answered with another key's signature")
        }
        SignError::Encode => anyhow::anyhow!(
            "no update can be made of this: root and hash tree must be whole blocks of 4096 bytes, floor and --from not above the version, the notes one line of at most 200 bytes"
        ),
    }
}

/// A release key in a file. Both kinds sign the same thing with the same bytes each time.
enum ReleaseKey {
    Ed25519(ed25519_dalek::SigningKey),
    P256(p256::ecdsa::SigningKey),
}

impl ReleaseKey {
    /// What stands before the 32 bytes of an Ed25519 key (RFC 8410, section 7).
    const ED25519: [u8; 16] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];

    fn read(path: &Path) -> anyhow::Result<Self> {
        const KEY_BYTES_MAX: usize = 16 * 1024;
        let shown = path.display();
        let pem = files::read(path, KEY_BYTES_MAX)?;
        let der = PrivatePkcs8KeyDer::from_pem_slice(&pem).with_context(|| {
            format!("{shown} has no private key in PKCS#8 (`openssl genpkey` makes one)")
        })?;
        let der = der.secret_pkcs8_der();
        if let Some(seed) = der.strip_prefix(&Self::ED25519) {
            let seed = seed.try_into().with_context(|| format!("{shown} is damaged"))?;
            return Ok(Self::Ed25519(ed25519_dalek::SigningKey::from_bytes(seed)));
        }
        let key = p256::SecretKey::from_pkcs8_der(der);
        let key =
            key.ok().with_context(|| format!("{shown} is neither an Ed25519 nor a P-256 key"))?;
        Ok(Self::P256(key.into()))
    }

    fn public(&self) -> anyhow::Result<PublicKey> {
        let public = match self {
            Self::Ed25519(key) => {
                PublicKey::new(Algorithm::Ed25519, key.verifying_key().as_bytes())
            }
            Self::P256(key) => {
                let point = key.verifying_key().to_sec1_point(false);
                PublicKey::new(Algorithm::P256, point.as_bytes())
            }
        };
        public.context("the release key is a weak one")
    }

    fn sign(&self, bytes: &[u8]) -> Signature {
        match self {
            Self::Ed25519(key) => key.sign(bytes).to_bytes().into(),
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(bytes);
                let fixed: [u8; Signature::BYTES] = signature.to_bytes().into();
                fixed.into()
            }
        }
    }
}
