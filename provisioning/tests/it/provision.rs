//! Provisioning documents at a desk, and sticks that are none.

use std::fs;

use crate::desk::Desk;

fn with_document(more: &str) -> Desk {
    let desk = Desk::new();
    let officer = desk.officer();
    let text = format!(
        "serial = 1\nserver_name = \"alpha.example\"\n{more}\n[officers]\ntrusted_keys = [\"{officer}\"]\n"
    );
    desk.write("box.toml", text);
    desk
}

#[test]
fn the_example_is_changed_signed_and_checked() {
    let desk = Desk::new();
    desk.run("provision new --out box.toml").ok();
    desk.run("provision new --out box.toml").fails(1, "an existing file is not replaced");
    // Without an officer nobody could ever sign it.
    desk.run("provision check box.toml").fails(1, "officers.provision_approvals");
    let officer = desk.officer();
    let text = String::from_utf8(desk.read("box.toml")).unwrap();
    desk.write(
        "box.toml",
        text.replace("trusted_keys = []", &format!("trusted_keys = [\"{officer}\"]")),
    );
    let checked = desk.run("provision check box.toml").ok();
    for line in [
        "192.168.7.1/24, gateway 192.168.7.254",
        "https://chat.alpha.example",
        "opensc with the label alpha, PIN asked for at the console",
        "nobody yet",
    ] {
        assert!(checked.contains(line), "no {line:?} in {checked}");
    }
    let sign = "provision sign box.toml --token token.toml --allow-software-keys --out a.approval";
    let signed = desk.run(sign).ok();
    let code = signed.lines().last().unwrap();
    assert!(checked.contains(&format!("code for the console of a new box: {code}")), "{signed}");
    let checked = desk.run("provision check box.toml --approval a.approval").ok();
    assert!(!checked.contains("nobody yet"), "{checked}");
    // One more space, and the approval is for another document.
    desk.write("box.toml", [desk.read("box.toml"), b" ".to_vec()].concat());
    desk.run("provision check box.toml --approval a.approval")
        .fails(1, "approval 1 does not count");
}

#[test]
fn what_the_box_could_not_use_is_not_signed() {
    let table = [
        ("[token]\nkind = \"software\"", "allow_software_keys = true"),
        ("[token]\nkind = \"paper\"", "token.label: write the label"),
        (
            "[token]\nkind = \"opensc\"\nmodule = \"/m.so\"\nlabel = \"a\"",
            "does not have its shape",
        ),
        ("[network]\naddress = \"10.0.0.1\"", "does not have its shape"),
    ];
    for (more, says) in table {
        let desk = with_document(more);
        let sign = "provision sign box.toml --token token.toml --allow-software-keys --out a";
        desk.run(sign).fails(1, says);
        assert!(!desk.path("a").exists());
    }
}

#[test]
fn media_that_are_no_sticks() {
    let desk = Desk::new();
    let read = "stick read --device image --quarantine quarantine";
    desk.run(read).fails(1, "is the stick plugged in?");
    desk.write("image", [0; 4096]);
    desk.run(read).fails(1, "there is no FAT32 or exFAT volume on the stick");
    desk.run("stick read --device . --quarantine quarantine")
        .fails(1, "neither a device with blocks");
    desk.run("stick write --device image --from quarantine").ok();
    // What was there is gone, whatever came of the stick.
    fs::write(desk.path("quarantine").join("in").join("old"), "").unwrap();
    desk.run(read).fails(1, "there is no FAT32");
    assert!(!desk.path("quarantine").join("in").join("old").exists());
    desk.run("stick apply --quarantine quarantine --settings settings")
        .fails(1, "settings is not a folder");
}
