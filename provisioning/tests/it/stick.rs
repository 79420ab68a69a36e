//! Files on a stick, friendly and hostile.

use std::{fs, os::unix::fs::symlink, process::Command};

use crate::desk::Desk;

fn with_roster() -> Desk {
    let desk = Desk::new();
    desk.officer();
    desk.write("list.csv", "localpart\nalice\n");
    desk.run("roster make list.csv --enclave alpha.example --serial 1 --out made.json").ok();
    desk.run("roster sign made.json --token token.toml --allow-software-keys --out signed.roster")
        .ok();
    fs::create_dir(desk.path("stick")).unwrap();
    desk
}

fn roster_folder(desk: &Desk) -> std::path::PathBuf {
    desk.path("stick").join("SALLYPORT").join("ROSTER")
}

#[test]
fn write_and_list() {
    let desk = with_roster();
    desk.write("some.bundle", include_bytes!("fixtures/some.bundle"));
    let said = desk.run("stick write stick --roster signed.roster --bundle some.bundle").ok();
    let mut lines = said.lines();
    let name = lines.next().unwrap().strip_prefix("signed.roster is on the stick as ").unwrap();
    assert!(name.starts_with("SNR-") && name.ends_with(".snr"), "{name}");
    assert!(lines.next().unwrap().starts_with("some.bundle is on the stick as SNB-"));
    assert_eq!(
        lines.next(),
        Some("Everything is written. Unmount the stick before you pull it out.")
    );
    assert_eq!(fs::read(roster_folder(&desk).join(name)).unwrap(), desk.read("signed.roster"));
    // The same file again is the same name, not a second copy.
    desk.run("stick write stick --roster signed.roster").ok();
    assert_eq!(fs::read_dir(roster_folder(&desk)).unwrap().count(), 1);
    let list = desk.run("stick list stick").ok();
    assert!(list.contains("roster 1 (full) of alpha.example, 1 accounts\n"), "{list}");
}

#[test]
fn only_what_belongs_there_is_written() {
    let desk = with_roster();
    desk.run("stick write stick").fails(1, "nothing to write");
    desk.run("stick write stick --roster list.csv").fails(1, "list.csv does not belong on a stick");
    desk.run("stick write nowhere --roster signed.roster").fails(1, "is the stick mounted there?");
    assert_eq!(desk.run("stick list stick").ok(), "There is nothing of Sallyport on this stick.\n");
}

#[test]
fn hostile_sticks_are_read_with_tongs() {
    let desk = with_roster();
    desk.run("stick write stick --roster signed.roster").ok();
    let folder = roster_folder(&desk);
    let good = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    symlink(&good, folder.join("SNR-0000000000000000.snr")).unwrap();
    symlink("/etc/passwd", folder.join("SNR-1111111111111111.snr")).unwrap();
    fs::create_dir(folder.join("SNR-2222222222222222.snr")).unwrap();
    fs::write(folder.join("SNR-3333333333333333.snr"), "not a roster").unwrap();
    fs::write(folder.join("autorun.inf"), "").unwrap();
    fs::write(folder.join("SNR-../../../../../x.snr".replace('/', "_")), "").unwrap();
    let fifo = folder.join("SNR-4444444444444444.snr");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());

    let list = desk.run("stick list stick").ok();
    let of = |digit: &str| {
        let name = format!("SNR-{}.snr", digit.repeat(16));
        list.lines().find(|line| line.contains(&name)).unwrap().to_owned()
    };
    for digit in ["0", "1"] {
        assert!(of(digit).contains("LEFT ALONE: cannot open"), "{list}");
    }
    for digit in ["2", "4"] {
        assert!(of(digit).contains("is not a regular file: it is left alone"), "{list}");
    }
    assert!(of("3").contains("LEFT ALONE: the file is not a signed roster"), "{list}");
    assert_eq!(list.matches("roster 1 (full)").count(), 1, "{list}");
    assert!(!list.contains("autorun") && !list.contains(".._"), "{list}");
}

#[test]
fn a_folder_that_is_a_link_is_not_followed() {
    let desk = with_roster();
    symlink("/tmp", desk.path("stick").join("SALLYPORT")).unwrap();
    desk.run("stick list stick").fails(1, "stick/SALLYPORT on the stick is not a folder");
    desk.run("stick write stick --roster signed.roster").fails(1, "is not a folder");
}
