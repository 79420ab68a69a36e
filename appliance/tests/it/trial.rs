//! Systems on trial: what becomes of the database before anybody writes to it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use sallyport::{
    app::{self, App},
    config::Config,
    shutdown,
    trial::{self, Boot, COPY, Error, RolledBack, Start},
};
use sallyport_core::time::Millis;
use tempfile::TempDir;

/// The data of a box that ran once.
struct Data(TempDir);

impl Data {
    fn new() -> Self {
        let data = Self(TempDir::new().unwrap());
        data.write("one");
        data
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn start(&self, boot: &Boot) -> Result<Arc<App>, Box<app::Error>> {
        let folder = self.0.path().display().to_string();
        let text = format!("server_name = 'alpha.example'\ndata_dir = {folder:?}");
        let config = Config::parse(&text, Path::new("test")).unwrap();
        App::start(config, || Millis(1_000_000_000_000), shutdown::channel().1, boot)
            .map_err(Box::new)
    }

    /// What the box would keep of a message.
    fn write(&self, value: &'static str) {
        let app = self.start(&Boot::default()).unwrap();
        trial::settle(&app).unwrap();
        app.store
            .write(move |write| write.set_meta("test", value.as_bytes()))
            .map_err(|error: sallyport_store::Error| error)
            .unwrap();
    }

    fn read(&self) -> String {
        let app = self.start(&Boot::default()).unwrap();
        let value = app.store.read(|read| read.meta("test")).unwrap().unwrap();
        String::from_utf8(value).unwrap()
    }

    /// Gives the database another schema number, as a migration does last of all.
    fn set_schema(&self, schema: u32) {
        let path = self.path("sallyport.db");
        let mut bytes = fs::read(&path).unwrap();
        bytes[60..64].copy_from_slice(&schema.to_be_bytes());
        fs::write(path, bytes).unwrap();
    }

    fn prepare(&self, on_trial: bool, known: u32) -> Result<Start, Error> {
        trial::prepare(self.0.path(), on_trial, known)
    }

    fn variable(&self, name: &str) -> Boot {
        let path = self.path("LoaderBootCountPath");
        let text = format!("\\EFI\\Linux\\{name}\0");
        let text = text.encode_utf16().flat_map(u16::to_le_bytes);
        fs::write(&path, [6, 0, 0, 0].into_iter().chain(text).collect::<Vec<u8>>()).unwrap();
        Boot { count: Some(path), blessed: Some(self.path("blessed")) }
    }
}

fn known() -> u32 {
    sallyport_store::newest_schema()
}

#[test]
fn a_version_that_did_not_hold_gives_the_database_back() {
    let data = Data::new();
    // The new version starts, copies, migrates, and writes something of its own.
    let start = data.prepare(true, known() + 1).unwrap();
    assert_eq!(start, Start { on_trial: true, found: Some(known()), rolled_back: None });
    data.write_without_settling("two");
    let vault = fs::read(data.path("vault")).unwrap();
    fs::write(data.path("vault"), "of the new version").unwrap();
    data.set_schema(known() + 1);
    // It is tried again: the copy stays the one from before.
    data.prepare(true, known() + 1).unwrap();
    // The old version starts.
    let app = data.start(&Boot::default()).unwrap();
    let rolled_back = Some(RolledBack { from: known() + 1, to: known() });
    assert_eq!(app.start, Start { on_trial: false, found: Some(known()), rolled_back });
    assert_eq!(fs::read(data.path("vault")).unwrap(), vault);
    drop(app);
    // The power goes before the audit log was told: the next start knows it still.
    let app = data.start(&Boot::default()).unwrap();
    assert_eq!(app.start.rolled_back, rolled_back);
    trial::settle(&app).unwrap();
    let rows = app.store.read(|read| read.audit_rows(0, 10)).unwrap();
    let last = rows.last().unwrap();
    assert_eq!(last.entry.action, "update.rolled-back");
    assert_eq!(last.entry.actor, "the box");
    drop(app);
    assert_eq!(data.start(&Boot::default()).unwrap().start.rolled_back, None);
    assert_eq!(data.read(), "one");
    assert!(!data.path(COPY).exists());
}

impl Data {
    fn write_without_settling(&self, value: &'static str) {
        // On trial, so that the copy stays.
        let app = self.start(&self.variable("sallyport_0.2.0+2-1.efi")).unwrap();
        let written: Result<(), sallyport_store::Error> =
            app.store.write(move |write| write.set_meta("test", value.as_bytes()));
        written.unwrap();
    }
}

#[test]
fn a_version_that_was_blessed_has_no_way_back() {
    let data = Data::new();
    data.prepare(true, known() + 1).unwrap();
    assert!(data.path(COPY).join("sallyport.db").exists());
    // It was blessed and opens: this is that start.
    data.write("two");
    assert!(!data.path(COPY).exists());
    data.set_schema(known() + 1);
    let error = data.start(&Boot::default()).err().unwrap();
    let text = format!("{:#}", anyhow::Error::from(*error));
    assert!(text.contains("restore a backup"), "{text}");
}

#[test]
fn power_cuts_on_the_way_back_are_made_up_for() {
    let data = Data::new();
    data.prepare(true, known() + 1).unwrap();
    let copy = fs::read(data.path(COPY).join("sallyport.db")).unwrap();
    let returning = data.path("before-update.returning");
    // Cut after the first step, after half of the second, and after all of it.
    for step in 0..3 {
        fs::create_dir_all(&returning).unwrap();
        fs::write(returning.join("from-schema"), "99").unwrap();
        fs::write(data.path("sallyport.db-wal"), "of the new version").unwrap();
        if step < 2 {
            fs::write(data.path("sallyport.db"), "of the new version").unwrap();
            fs::write(returning.join("sallyport.db"), &copy).unwrap();
        }
        if step > 0 {
            fs::remove_file(data.path("sallyport.db-wal")).unwrap();
        }
        let start = data.prepare(false, known()).unwrap();
        let rolled_back = Some(RolledBack { from: 99, to: known() });
        assert_eq!(start.rolled_back, rolled_back, "step {step}");
        assert_eq!(data.read(), "one", "step {step}");
    }
}

#[test]
fn a_copy_that_was_cut_short_is_none() {
    let data = Data::new();
    let making = data.path("before-update.making");
    fs::create_dir(&making).unwrap();
    fs::write(making.join("sallyport.db"), "half").unwrap();
    data.prepare(true, known() + 1).unwrap();
    assert!(!making.exists());
    let copy = data.path(COPY).join("sallyport.db");
    assert_eq!(sallyport_store::schema_of(&copy).unwrap(), Some(known()));
}

#[test]
fn a_start_that_is_no_trial_and_one_without_a_migration_make_no_copy() {
    let data = Data::new();
    data.prepare(false, known() + 1).unwrap();
    data.prepare(true, known()).unwrap();
    assert!(!data.path(COPY).exists());
    let empty = TempDir::new().unwrap();
    let start = trial::prepare(empty.path(), true, known()).unwrap();
    assert_eq!(start, Start { on_trial: true, found: None, rolled_back: None });
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0);
}

#[test]
fn a_database_that_is_newer_than_its_copy_and_both_newer_than_this_is_left_alone() {
    let data = Data::new();
    data.prepare(true, known() + 1).unwrap();
    data.set_schema(known() + 1);
    let error = data.prepare(false, known() - 1).unwrap_err();
    assert!(matches!(error, Error::CopyTooNew { .. }), "{error}");
    assert!(data.path(COPY).join("sallyport.db").exists());
}

#[test]
fn what_the_boot_loader_says() {
    let data = Data::new();
    let table = [
        ("sallyport_0.2.0+2-1.efi", true),
        ("sallyport_0.2.0+8-1.efi", false),
        ("sallyport_0.2.0.efi", false),
    ];
    for (name, is_trial) in table {
        assert_eq!(data.variable(name).is_trial().unwrap(), is_trial, "{name}");
    }
    // The server was started again after the blessing.
    let boot = data.variable("sallyport_0.2.0+2-1.efi");
    fs::write(data.path("blessed"), "").unwrap();
    assert!(!boot.is_trial().unwrap());
    fs::remove_file(data.path("blessed")).unwrap();
    fs::remove_file(data.path("LoaderBootCountPath")).unwrap();
    let boot = Boot { count: Some(data.path("LoaderBootCountPath")), blessed: None };
    assert!(!boot.is_trial().unwrap());
    assert!(!Boot::default().is_trial().unwrap());
}

#[test]
fn a_damaged_page_is_found_on_trial() {
    let data = Data::new();
    let app = data.start(&data.variable("sallyport_0.2.0+2-1.efi")).unwrap();
    trial::examine(&app).unwrap();
    drop(app);
    let path = data.path("sallyport.db");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x5a);
    fs::write(&path, bytes).unwrap();
    match data.start(&data.variable("sallyport_0.2.0+2-1.efi")) {
        Ok(app) => assert!(trial::examine(&app).is_err()),
        Err(error) => assert!(matches!(*error, app::Error::Store { .. }), "{error}"),
    }
}

/// A token that was there and is gone is not what an update may leave; one that never was there is no reason to go back.
#[test]
fn the_token_counts_only_if_it_was_there_before() {
    let data = Data::new();
    let boot = data.variable("sallyport_0.2.0+2-1.efi");
    let with_token = |token: &str| {
        let folder = data.0.path().display().to_string();
        let text = format!(
            "server_name = 'alpha.example'\ndata_dir = {folder:?}\nallow_software_keys = true\n[token]\nkind = {token}\n"
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let (trigger, shutdown) = shutdown::channel();
        let app = App::start(config, || Millis(1_000_000_000_000), shutdown, &boot).unwrap();
        // A box that is to stop waits for no token.
        trigger.stop();
        app
    };
    let software = format!("'software'\npath = {:?}", data.path("keys").display().to_string());
    let pin = data.path("pin");
    fs::write(&pin, "alpha-1234").unwrap();
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
    let gone = format!(
        "'pkcs11'\nmodule = '/nowhere.so'\ntoken_label = 'alpha'\npin = 'file:{}'",
        pin.display()
    );
    // Where a person gives the PIN, the box still looks whether there is a token to give it for.
    let asked = "'pkcs11'\nmodule = '/nowhere.so'\ntoken_label = 'alpha'\npin = 'ask'".to_owned();
    let unserved = "'pkcs11-service'\nhelper = '/nowhere.sock'\npin = 'ask'".to_owned();
    for (token, seen, healthy) in [
        (&software, false, true),
        (&software, true, true),
        (&gone, false, true),
        (&gone, true, false),
        (&asked, true, false),
        (&unserved, false, true),
        (&unserved, true, false),
    ] {
        let app = with_token(token);
        let _: std::io::Result<()> = fs::remove_file(data.path("token-seen"));
        if seen {
            fs::write(data.path("token-seen"), "").unwrap();
        }
        let examined = trial::examine(&app);
        assert_eq!(examined.is_ok(), healthy, "{token}, seen: {seen}");
    }
}
