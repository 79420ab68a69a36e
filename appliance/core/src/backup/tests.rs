//! Backups as a whole: what was written is read, and nothing else is.

use std::{convert::Infallible, io, io::Write as _};

use ed25519_dalek::Signer as _;
use proptest::prelude::*;
use ruma::server_name;
use zeroize::Zeroizing;

use super::{
    BackupId, Chain, Contents, Error, Head, Link, Maker, RecoveryKey, Sealed, Section, Sink,
    WriteError, Writer, is_settings_name, stream::ChunkReader,
};
use crate::{
    audit::Tip,
    bundle::{
        PrivateHalf,
        chunk::{ChunkWriter, Keys},
    },
    card::EncryptionSuite,
    digest::Sha256,
    incarnation::Incarnation,
    sign::{Algorithm, PublicKey},
    time::Millis,
};

const SEED: [u8; 32] = [7; 32];
const SCALAR: [u8; 32] = [3; 32];

/// The recovery keys of two officers, one of each suite.
fn officers() -> [RecoveryKey; 2] {
    use p256::elliptic_curve::sec1::ToSec1Point as _;
    let point = p256::SecretKey::from_slice(&SCALAR).unwrap().public_key().to_sec1_point(false);
    let suite = EncryptionSuite::P256HkdfSha256Aes256Gcm;
    [RecoveryKey::new(suite, point.as_bytes().to_vec()).unwrap(), RecoveryKey::x_wing(&SEED)]
}

/// What the officers' tokens do.
fn private(asked: PrivateHalf<'_>) -> Result<Zeroizing<[u8; 32]>, Infallible> {
    Ok(Zeroizing::new(match asked {
        PrivateHalf::Seed => SEED,
        PrivateHalf::Agree(point) => {
            let ours = p256::SecretKey::from_slice(&SCALAR).unwrap();
            let theirs = p256::PublicKey::from_sec1_bytes(point).unwrap();
            (*ours.diffie_hellman(&theirs).raw_secret_bytes()).into()
        }
    }))
}

fn courier(seed: u8) -> (ed25519_dalek::SigningKey, PublicKey) {
    let secret = ed25519_dalek::SigningKey::from_bytes(&[seed; 32]);
    let public = PublicKey::new(Algorithm::Ed25519, secret.verifying_key().as_bytes()).unwrap();
    (secret, public)
}

fn maker(number: u64, follows: Option<BackupId>) -> Maker {
    Maker {
        enclave: server_name!("alpha.test").to_owned(),
        incarnation: Incarnation([1; 16]),
        number,
        created: Millis(1_000_000 + number),
        follows,
        signer: courier(1).1,
    }
}

fn randomness() -> Result<[u8; 64], WriteError> {
    Ok([5; 64])
}

/// What a backup of a test holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Items {
    settings: Vec<(String, Vec<u8>)>,
    database: Vec<u8>,
    media: Vec<Vec<u8>>,
    brought: Vec<Vec<u8>>,
}

impl Items {
    fn sample() -> Self {
        let media: Vec<Vec<u8>> =
            [b"one".to_vec(), vec![9; 2_500_000], Vec::new()].into_iter().collect();
        Self {
            settings: vec![("sallyport.toml".to_owned(), b"server_name = 'alpha.test'".to_vec())],
            database: (0..300_000_u32).flat_map(|n| (n / 7).to_le_bytes()).collect(),
            brought: media.clone(),
            media,
        }
    }

    fn write(&self, maker: Maker, to: &[RecoveryKey]) -> Result<(Vec<u8>, BackupId), WriteError> {
        let content_key = Zeroizing::new([8; 32]);
        let mut writer = Writer::new(Vec::new(), maker, to, &content_key, randomness)?;
        for (name, content) in &self.settings {
            writer.file(Section::Settings, name, content)?;
        }
        writer.file(Section::Wrapped, "vault", b"sealed")?;
        let mut item = writer.item(Section::Database, "", self.database.len() as u64)?;
        item.write_all(&self.database)?;
        item.finish()?;
        let mut list: Vec<_> = self.media.iter().map(|file| (Sha256::of(file), file)).collect();
        list.sort();
        list.dedup();
        let mut item = writer.item(Section::MediaList, "", 40 * list.len() as u64)?;
        for (sha256, file) in &list {
            item.write_all(sha256.as_bytes())?;
            item.write_all(&(file.len() as u64).to_be_bytes())?;
        }
        item.finish()?;
        for (sha256, file) in list.iter().filter(|(_, file)| self.brought.contains(file)) {
            let mut item = writer.item(Section::Media, &sha256.to_string(), file.len() as u64)?;
            item.write_all(file)?;
            item.finish()?;
        }
        let id = writer.id();
        let (secret, _) = courier(1);
        let sign = |bytes: &[u8]| Ok::<_, Infallible>(secret.sign(bytes).to_bytes().into());
        let (file, _) = writer.finish(Tip { id: 4, hash: Sha256::of(b"row") }, "1.0", 0, sign)?;
        Ok((file, id))
    }
}

/// Keeps what it is given.
#[derive(Default)]
struct Kept {
    items: Vec<(Head, Vec<u8>)>,
    ended: usize,
}

impl Sink for Kept {
    fn begin(&mut self, head: &Head) -> io::Result<()> {
        self.items.push((head.clone(), Vec::new()));
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.items.last_mut().unwrap().1.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.ended += 1;
        Ok(())
    }
}

fn read(file: &[u8], key: &RecoveryKey) -> Result<(Contents, Kept), Error> {
    let mut kept = Kept::default();
    let contents = Sealed::open(file)?.unlock(key, private)?.read(&mut kept)?;
    Ok((contents, kept))
}

fn of_section(kept: &Kept, section: Section) -> Vec<(&str, &[u8])> {
    let items = kept.items.iter().filter(|(head, _)| head.section == section);
    items.map(|(head, content)| (head.name.as_str(), content.as_slice())).collect()
}

#[test]
fn each_officer_reads_what_was_written() {
    let items = Items::sample();
    let (file, id) = items.write(maker(1, None), &officers()).unwrap();
    for key in officers() {
        let (contents, kept) = read(&file, &key).unwrap();
        assert_eq!(contents.signed.manifest.id, id);
        assert_eq!(contents.signed.manifest.audit().id, 4);
        assert_eq!(kept.ended, kept.items.len());
        assert_eq!(of_section(&kept, Section::Database), [("", items.database.as_slice())]);
        assert_eq!(of_section(&kept, Section::Media).len(), 3);
        assert_eq!(contents.brought, [true; 3]);
        let database = contents.signed.manifest.content(Section::Database).unwrap();
        assert_eq!((database.items, database.bytes), (1, items.database.len() as u64));
        assert!(matches!(contents.signed.vouched("any words"), Err(Error::NoCard)));
    }
    // Compressed: the database is a counter.
    let media: usize = items.media.iter().map(Vec::len).sum();
    assert!(file.len() < media + items.database.len() / 2, "{} bytes", file.len());
}

#[test]
fn a_stranger_reads_nothing() {
    let (file, _) = Items::sample().write(maker(1, None), &officers()[..1]).unwrap();
    let refused = read(&file, &officers()[1]).err().unwrap();
    assert!(matches!(refused, Error::NotForKey { .. }), "{refused}");
    // The right name, and another private half.
    let wrong = |_: PrivateHalf<'_>| Ok::<_, Infallible>(Zeroizing::new([1; 32]));
    let sealed = Sealed::open(file.as_slice()).unwrap();
    assert!(matches!(sealed.unlock(&officers()[0], wrong).err(), Some(Error::WrongKey)));
}

#[test]
fn every_truncation_and_addition_is_refused() {
    let (file, _) = Items::sample().write(maker(1, None), &officers()).unwrap();
    let key = &officers()[1];
    let chunk = (1 << 20) + 16;
    let head = file.len() % chunk;
    let cuts = (0..200).chain([head, head + 1, file.len() - 17, file.len() - 16, file.len() - 1]);
    // After whole chunks too.
    let cuts = cuts.chain((1..3).map(|n| file.len().saturating_sub(n * chunk)));
    for kept in cuts {
        assert!(read(&file[..kept], key).is_err(), "the first {kept} bytes");
    }
    for more in [1, 16, 17, chunk] {
        let longer = [file.as_slice(), &vec![0; more]].concat();
        assert!(read(&longer, key).is_err(), "{more} bytes more");
    }
}

#[test]
fn flipped_bits_are_refused() {
    let mut items = Items::sample();
    items.database.truncate(50);
    items.media = vec![b"one".to_vec()];
    items.brought = items.media.clone();
    let (file, _) = items.write(maker(1, None), &officers()[1..]).unwrap();
    let every = (0..200).chain((200..file.len()).step_by(7));
    for at in every {
        let mut damaged = file.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(read(&damaged, &officers()[1]).is_err(), "byte {at}");
    }
}

#[test]
fn a_backup_is_of_whoever_signed_it() {
    let content_key = Zeroizing::new([8; 32]);
    let sign = |seed: u8| {
        let (secret, _) = courier(seed);
        move |bytes: &[u8]| Ok::<_, Infallible>(secret.sign(bytes).to_bytes().into())
    };
    let writer = || {
        let mut writer =
            Writer::new(Vec::new(), maker(1, None), &officers(), &content_key, randomness).unwrap();
        writer.file(Section::Database, "", b"db").unwrap();
        writer.file(Section::MediaList, "", b"").unwrap();
        writer
    };
    let tip = Tip::default();
    let (good, _) = writer().finish(tip, "1", 0, sign(1)).unwrap();
    assert!(read(&good, &officers()[0]).is_ok());
    // Another key than the header names: it is not even written.
    assert!(matches!(writer().finish(tip, "1", 0, sign(2)), Err(WriteError::Sign(_))));
}

#[test]
fn what_does_not_belong_there_is_not_written() {
    let content_key = Zeroizing::new([8; 32]);
    let new =
        |to: &[RecoveryKey]| Writer::new(Vec::new(), maker(1, None), to, &content_key, randomness);
    assert!(matches!(new(&[]).err(), Some(WriteError::NoRecipients)));
    let many = vec![officers()[0].clone(); 17];
    assert!(matches!(new(&many).err(), Some(WriteError::TooManyRecipients)));
    let refused = |section, name: &str, bytes| {
        let mut writer = new(&officers()).unwrap();
        writer.item(section, name, bytes).err().unwrap()
    };
    for (section, name, bytes) in [
        (Section::Settings, "../sallyport.toml", 1),
        (Section::Settings, "Sallyport.toml", 1),
        (Section::Settings, "sallyport.toml", (1 << 20) + 1),
        (Section::Wrapped, "sallyport.db", 1),
        (Section::Wrapped, "tls/../../x", 1),
        (Section::Database, "name", 1),
        (Section::Database, "", (1 << 40) + 1),
        (Section::Media, "00", 1),
    ] {
        let error = refused(section, name, bytes);
        assert!(matches!(error, WriteError::Item { .. }), "{section} {name}: {error}");
    }
    let mut writer = new(&officers()).unwrap();
    writer.file(Section::Database, "", b"db").unwrap();
    let error = writer.file(Section::Wrapped, "vault", b"x").unwrap_err();
    assert!(matches!(error, WriteError::Order(Section::Wrapped)), "{error}");
    let mut item = writer.item(Section::MediaList, "", 40).unwrap();
    item.write_all(&[1; 39]).unwrap();
    assert!(matches!(item.finish(), Err(WriteError::Changed(_))));
}

#[test]
fn a_full_backup_brings_every_media_file_and_the_next_the_new_ones() {
    let key = &officers()[1];
    let full = Items::sample();
    let (first, id) = full.write(maker(1, None), &officers()).unwrap();
    let mut next = full.clone();
    next.media.push(b"new".to_vec());
    next.brought = vec![b"new".to_vec()];
    // It says that it is full, and is not.
    let (lie, _) = next.write(maker(2, None), &officers()).unwrap();
    assert!(matches!(read(&lie, key).err(), Some(Error::Manifest(Section::Media))));
    let (second, second_id) = next.write(maker(2, Some(id)), &officers()).unwrap();
    next.brought = vec![];
    next.media.push(b"lost".to_vec());
    let (third, _) = next.write(maker(3, Some(second_id)), &officers()).unwrap();
    let link = |file: &[u8]| {
        let sealed = Sealed::open(file).unwrap();
        Link { id: sealed.id(), header: sealed.header().clone() }
    };
    let check = |files: &[&[u8]]| {
        let links: Vec<_> = files.iter().map(|file| link(file)).collect();
        Chain::check(&links)
    };
    assert!(check(&[&first, &second, &third]).is_ok());
    assert!(matches!(check(&[&second]), Err(Error::NotFull { number: 2, .. })));
    assert!(matches!(check(&[&first, &third]), Err(Error::OutOfOrder { number: 3 })));
    assert!(matches!(check(&[&first, &first]), Err(Error::OutOfOrder { number: 1 })));
    assert!(check(&[]).is_err());
    let chain = |files: &[&[u8]]| {
        let mut chain = Chain::default();
        files.iter().for_each(|file| chain.push(read(file, key).unwrap().0));
        chain.finish()
    };
    assert_eq!(chain(&[&first, &second]).unwrap().list.len(), 4);
    assert!(matches!(chain(&[&first, &second, &third]), Err(Error::Incomplete { missing: 1 })));
}

#[test]
fn recovery_keys_have_a_text_form() {
    for key in officers() {
        let text = key.to_string();
        assert_eq!(text.parse(), Ok(key.clone()));
        assert_eq!(format!(" {text}\n").parse(), Ok(key));
        for bad in ["", "p256:", "p256:AAAA", "x-wing:AAAA", &text[1..], &text[..text.len() - 2]] {
            assert!(bad.parse::<RecoveryKey>().is_err(), "{bad}");
        }
    }
    // A signing key's text is not a recovery key's: the other point of Ed25519 has another length.
    assert!(courier(1).1.to_string().parse::<RecoveryKey>().is_err());
}

#[test]
fn names_of_settings_never_lead_out_of_their_folder() {
    for (name, good) in [
        ("sallyport.toml", true),
        ("network.toml", true),
        ("provision.cbor", true),
        ("a-b_c.9.toml", true),
        (".toml", false),
        ("..toml", false),
        ("../a.toml", false),
        ("a/b.toml", false),
        ("a.conf", false),
        ("", false),
        ("a\u{0}.toml", false),
    ] {
        assert_eq!(is_settings_name(name), good, "{name:?}");
    }
    assert!(!is_settings_name(&format!("{}.toml", "a".repeat(60))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_is_written_is_read(
        database in prop::collection::vec(any::<u8>(), 0..3000),
        media in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..5),
        settings in prop::collection::btree_map("[a-z]{1,8}\\.toml", prop::collection::vec(any::<u8>(), 0..50), 0..4),
    ) {
        let items = Items {
            settings: settings.into_iter().collect(),
            database,
            brought: media.clone(),
            media,
        };
        let (file, _) = items.write(maker(1, None), &officers()).unwrap();
        let (contents, kept) = read(&file, &officers()[1]).unwrap();
        prop_assert_eq!(of_section(&kept, Section::Database), [("", items.database.as_slice())]);
        let read: Vec<_> = of_section(&kept, Section::Settings).into_iter().map(|(name, content)| (name.to_owned(), content.to_vec())).collect();
        prop_assert_eq!(read, items.settings);
        for ((sha256, size), (name, content)) in contents.list.iter().zip(of_section(&kept, Section::Media)) {
            prop_assert_eq!(&sha256.to_string(), name);
            prop_assert_eq!(*size, content.len() as u64);
            prop_assert!(items.media.iter().any(|file| file == content));
        }
    }

    /// Whoever knows the public recovery keys can put anything into a backup that opens.
    #[test]
    fn no_content_makes_the_reader_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut items = Items::sample();
        items.database.truncate(5000);
        items.media = vec![b"one".to_vec(), b"two".to_vec()];
        items.brought = items.media.clone();
        let (file, _) = items.write(maker(1, None), &officers()[1..]).unwrap();
        let mut input = file.as_slice();
        let (_, id) = super::Header::read(&mut input).unwrap();
        let head = file.len() - input.len();
        let keys = || Keys::of_content_key(&[8; 32], id.0).unwrap();
        let mut plain = vec![0; input.len() - 16];
        ChunkReader::new(input, keys()).fill(&mut plain).unwrap();
        let whole = plain.clone();
        for (at, byte) in changes {
            *at.get_mut(&mut plain) = byte;
        }
        if let Some(cut) = cut {
            plain.truncate(cut.index(plain.len()));
        }
        let mut hostile = file[..head].to_vec();
        let mut writer = ChunkWriter::new(&mut hostile, keys());
        writer.write_all(&plain).unwrap();
        writer.finish().unwrap();
        prop_assert_eq!(read(&hostile, &officers()[1]).is_ok(), plain == whole);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
        prop_assert!(Sealed::open(bytes.as_slice()).is_err());
    }
}
