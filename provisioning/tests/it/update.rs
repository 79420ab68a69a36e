//! Updates from the parts of an image to a disk, with the real program.

use std::process::Command;

use sallyport_core::digest::Sha256;

use crate::desk::Desk;

/// A root file system of one block, whose tree is its superblock alone.
fn parts(desk: &Desk, name: &str, fill: u8) -> String {
    let root = vec![fill; 4096];
    let root_hash = Sha256::of(&root);
    let mut tree = b"verity\0\0".to_vec();
    tree.extend([1_u32, 1].map(u32::to_le_bytes).concat());
    tree.extend([&[0; 16][..], b"sha256", &[0; 26]].concat());
    tree.extend([4096_u32, 4096].map(u32::to_le_bytes).concat());
    tree.extend(1_u64.to_le_bytes());
    tree.resize(4096, 0);
    let command_line = format!("ro roothash={root_hash}");
    let mut uki = vec![0; 0x200];
    uki[..2].copy_from_slice(b"MZ");
    uki[0x3c] = 0x80;
    uki[0x80..0x84].copy_from_slice(b"PE\0\0");
    uki[0x86] = 1;
    uki[0x98..0xa0].copy_from_slice(b".cmdline");
    let bytes = u32::try_from(command_line.len()).unwrap().to_le_bytes();
    uki[0xa0..0xa4].copy_from_slice(&bytes);
    uki[0xa8..0xac].copy_from_slice(&bytes);
    uki[0xac..0xb0].copy_from_slice(&0x200_u32.to_le_bytes());
    uki.extend(command_line.bytes());
    for (part, content) in [("root", root), ("tree", tree), ("uki", uki)] {
        desk.write(&format!("{name}.{part}"), content);
    }
    desk.write(&format!("{name}.hash"), format!("{root_hash}\n"));
    format!(
        "--root {name}.root --verity {name}.tree --uki {name}.uki --root-hash {name}.hash --built 1790000000"
    )
}

/// A release key as `openssl genpkey -algorithm ed25519` writes it.
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB\n-----END PRIVATE KEY-----\n";

/// A folder with the running system's files.
fn system(desk: &Desk, key: &str) {
    for folder in ["proc", "usr/lib/sallyport", "run/sallyport-state", "var/lib/sallyport-settings"]
    {
        std::fs::create_dir_all(desk.path("system").join(folder)).unwrap();
    }
    let root_hash = Sha256::of(&[1; 4096]);
    desk.write("system/proc/cmdline", format!("roothash={root_hash} ro\n"));
    desk.write(
        "system/usr/lib/os-release",
        "ID=sallyport\nIMAGE_VERSION=0.1.0\nSALLYPORT_SCHEMA=9\n",
    );
    desk.write("system/usr/lib/sallyport/update.pub", format!("# release\n{key}\n"));
}

fn made(desk: &Desk, line: &str) -> serde_json::Value {
    serde_json::from_str(&desk.run(line).ok()).unwrap()
}

#[test]
fn the_same_parts_make_the_same_file() {
    let desk = Desk::new();
    let parts = parts(&desk, "new", 2);
    desk.write("key.pem", KEY);
    let make = |out: &str| {
        made(
            &desk,
            &format!(
                "update make --release 0.2.0 {parts} --schema 9 --floor 0.1.0 --from 0.1.0 --notes Mends_the_clock. --key key.pem --out {out} --json"
            ),
        )
    };
    let (one, two) = (make("one.update"), make("two.update"));
    assert_eq!(one, two);
    assert_eq!(desk.read("one.update"), desk.read("two.update"));
    let key = one["key"].as_str().unwrap();
    assert!(key.starts_with("ed25519:"), "{key}");
    assert_eq!(desk.run("update public-key key.pem").ok(), format!("{key}\n"));
    desk.write("keys", format!("{key}\n"));
    let shown = made(&desk, "update inspect one.update --keys keys --json");
    assert_eq!(shown["manifest"]["version"], "0.2.0");
    assert_eq!(shown["manifest"]["notes"], "Mends the clock.");
    assert_eq!(shown["sha256"], one["sha256"]);
    desk.run(&format!(
        "update make --release 0.2.0 {parts} --schema 9 --floor 0.3.0 --from 0.1.0 --key key.pem --out three.update"
    ))
    .fails(1, "no update can be made of this");
    desk.run(&format!(
        "update make --release 0.2.0 {parts} --schema 9 --floor 0.1.0 --from 0.1.0 --key new.root --out three.update"
    ))
    .fails(1, "has no private key in PKCS#8");
}

#[test]
fn parts_that_do_not_fit_together_make_no_file() {
    let desk = Desk::new();
    parts(&desk, "other", 3);
    let parts = parts(&desk, "new", 2).replace("new.uki", "other.uki");
    desk.write("key.pem", KEY);
    desk.run(&format!(
        "update make --release 0.2.0 {parts} --schema 9 --floor 0.1.0 --from 0.1.0 --key key.pem --out one.update"
    ))
    .fails(1, "starts another root file system");
    assert!(!desk.path("one.update").exists());
}

#[test]
fn a_token_signs_as_well() {
    let desk = Desk::new();
    let parts = parts(&desk, "new", 2);
    let key = made(&desk, "ceremony release-key --token token.toml --allow-software-keys --json");
    let made = made(
        &desk,
        &format!(
            "update make --release 0.2.0 {parts} --schema 9 --floor 0.1.0 --from 0.1.0 --token token.toml --allow-software-keys --out one.update --json"
        ),
    );
    assert_eq!(made["key"], key["public"]);
}

#[test]
fn what_is_refused_is_told_to_the_console_as_well() {
    let desk = Desk::new();
    let parts = parts(&desk, "new", 2);
    desk.write("key.pem", KEY);
    let make = |version: &str, more: &str| {
        let line = format!(
            "update make --release {version} {parts} --floor 0.0.0 {more} --key key.pem --out {version}.update --json"
        );
        made(&desk, &line)
    };
    let key = make("0.2.0", "--from 0.1.0 --schema 9")["key"].as_str().unwrap().to_owned();
    make("0.3.0", "--from 0.2.0 --schema 9");
    make("0.0.9", "--from 0.0.1 --schema 8");
    make("0.0.8", "--from 0.0.1 --schema 9");
    system(&desk, &key);
    std::fs::create_dir_all(desk.path("system/var/lib/sallyport-update")).unwrap();
    desk.write("system/var/lib/sallyport-update/ledger.json", r#"{"floor":"0.0.9"}"#);
    let apply =
        |line: &str| desk.run(&format!("update apply {line} --system system --disk new.root"));
    apply("0.3.0.update").fails(1, "install 0.2.0 first");
    apply("0.0.9.update").fails(1, "knows the database up to schema 8, and it has 9");
    apply("0.0.8.update").fails(1, "is older than 0.0.9, the oldest that this box still takes");
    apply("0.2.0.update").fails(1, "the disk has no partition table");
    let told = String::from_utf8(desk.read("system/run/sallyport-state/update.json")).unwrap();
    let failed = r#"{"title":"The update was NOT installed","lines":["the disk has no partition"#;
    assert!(told.starts_with(failed), "{told}");
    // An officer permits it, for this file alone.
    let officer = desk.officer();
    desk.write(
        "system/var/lib/sallyport-settings/sallyport.toml",
        format!("server_name = \"alpha.example\"\n\n[roster]\ntrusted_keys = [\"{officer}\"]\n"),
    );
    desk.run("approve update 0.0.8.update --enclave alpha.example --token token.toml --allow-software-keys --out approval").ok();
    apply("0.0.8.update --approval approval").fails(1, "the disk has no partition table");
    apply("0.0.9.update --approval approval").fails(1, "knows the database up to schema 8");
    apply("0.2.0.update --approval approval").fails(1, "this update needs no approval");
    // As a stick brings them: a folder.
    std::fs::create_dir(desk.path("brought")).unwrap();
    for (from, to) in [("0.0.8.update", "a.update"), ("approval", "b.approval")] {
        desk.write(&format!("brought/{to}"), desk.read(from));
    }
    apply("brought").fails(1, "the disk has no partition table");
    desk.write("brought/c.update", desk.read("0.3.0.update"));
    apply("brought").fails(1, "install 0.2.0 first");
    std::fs::create_dir(desk.path("empty")).unwrap();
    apply("empty").fails(1, "empty has no update");
    desk.write(
        "system/var/lib/sallyport-settings/sallyport.toml",
        "server_name = \"bravo.example\"\n",
    );
    apply("0.0.8.update --approval approval").fails(1, "going below the floor is not approved");
}

#[test]
fn a_unit_asks_whether_the_system_is_on_trial() {
    let desk = Desk::new();
    system(&desk, "none");
    desk.run("update on-trial --system system").fails(1, "this system is not on trial");
    desk.run("update on-trial --not --system system").ok();
    let folder = "system/sys/firmware/efi/efivars";
    std::fs::create_dir_all(desk.path(folder)).unwrap();
    for (name, is_trial) in [("sallyport_0.2.0+2-1.efi", true), ("sallyport_0.2.0+8-1.efi", false)]
    {
        let path = format!("\\EFI\\Linux\\{name}\0");
        let text = path.encode_utf16().flat_map(u16::to_le_bytes);
        let variable: Vec<u8> = [6, 0, 0, 0].into_iter().chain(text).collect();
        desk.write(
            &format!("{folder}/LoaderBootCountPath-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"),
            variable,
        );
        let asked = [("update on-trial", is_trial), ("update on-trial --not", !is_trial)];
        for (line, holds) in asked {
            let ended = desk.run(&format!("{line} --system system"));
            assert_eq!(ended.code == Some(0), holds, "{name}: {line}");
        }
    }
}

/// A stick gives only half of the file, or a link to something else.
#[test]
fn what_a_stick_brings_is_read_with_care() {
    let desk = Desk::new();
    desk.write("keys", "ed25519:iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w\n");
    desk.write("short", "sallyport-update");
    desk.run("update inspect short --keys keys").fails(1, "not an update of Sallyport");
    std::os::unix::fs::symlink("/proc/self/environ", desk.path("link")).unwrap();
    desk.run("update inspect link --keys keys").fails(1, "cannot open link");
    let fifo = Command::new("mkfifo").arg(desk.path("fifo")).status().unwrap();
    assert!(fifo.success());
    desk.run("update inspect fifo --keys keys").fails(1, "is not a regular file");
    desk.write("keys", "# nobody\n");
    desk.run("update inspect short --keys keys").fails(1, "keys names no release key");
}
