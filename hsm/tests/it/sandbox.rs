//! What is left to a process that has given everything else up.

use std::{
    env,
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Command,
};

use sallyport_hsm::sandbox::{self, Calls, Enforced, Files};

/// Tells the test below that it is the process to confine, and names its folder.
const FOLDER: &str = "SALLYPORT_TEST_SANDBOX";
const CHILD: &str = "sandbox::confined_child";

/// Confines itself if the test below started it for that; nothing could come after it in a process with other tests.
#[test]
fn confined_child() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let mut device = File::open(folder.join("device")).unwrap();
    let quarantine = folder.join("quarantine");
    let folders = [quarantine.clone()];
    sandbox::settle().unwrap();
    let files = Files { reading_too: true, folders: &folders, devices: None };
    let enforced = sandbox::confine_files(&files).unwrap();
    sandbox::confine_calls(Calls::Copying).unwrap();

    let mut content = String::new();
    device.read_to_string(&mut content).unwrap();
    File::create(quarantine.join("copy")).unwrap().write_all(content.as_bytes()).unwrap();
    assert_eq!(fs::read_to_string(quarantine.join("copy")).unwrap(), "content");
    if enforced != Enforced::NotAtAll {
        for path in ["device", "beside"] {
            let refused = File::open(folder.join(path)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{path}");
            assert!(File::create(folder.join(path)).is_err(), "{path}");
        }
    }
    assert_eq!(TcpListener::bind("127.0.0.1:0").unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(UnixDatagram::unbound().unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert!(Command::new("/bin/true").status().is_err());
    println!("confined");
}

#[test]
fn a_process_that_copies_keeps_its_folder_and_what_is_open() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("device"), "content").unwrap();
    fs::write(folder.path().join("beside"), "secret").unwrap();
    fs::create_dir(folder.path().join("quarantine")).unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", CHILD, "--nocapture"])
        .env(FOLDER, folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && said.contains("confined"), "{said}");
}
