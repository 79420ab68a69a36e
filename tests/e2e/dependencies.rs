//! The dependency rule of `appliance/ARCHITECTURE.md`, checked over `cargo metadata`: which package
//! may use which, and which foreign packages may be there at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::LazyLock,
};

use sallyport_e2e::repository;
use serde_json::Value;

/// Which of our own packages each of our packages may depend on (tests included).
const OUR_RULE: &[(&str, &[&str])] = &[
    ("sallyport-core", &[]),
    ("sallyport-store", &["sallyport-core"]),
    ("sallyport-hsm", &["sallyport-core", "sallyport-hsm-faults"]),
    ("sallyport-hsm-faults", &[]),
    ("sallyport", &["sallyport-core", "sallyport-store", "sallyport-hsm"]),
    ("sallyport-provisioning", &["sallyport-core", "sallyport-hsm", "sallyport-volume"]),
    ("sallyport-volume", &[]),
    // Its tests run binaries; its bench compares the backend of tokens with a bare loop.
    ("sallyport-e2e", &["sallyport-core", "sallyport-hsm", "sallyport-hsm-faults"]),
    ("sallyport-fuzz-targets", &["sallyport-core", "sallyport", "sallyport-volume"]),
];

/// Packages that touch the world. None of them may be under `sallyport-core`, however deep.
const INPUT_OUTPUT: &[&str] = &[
    "axum",
    "cryptoki",
    "hyper",
    "hyper-util",
    "libsqlite3-sys",
    "mio",
    "nix",
    "rusqlite",
    "rustix",
    "socket2",
    "tempfile",
    "tokio",
    "tokio-rustls",
];

/// A foreign package with few homes among ours.
const ONLY_HOME: &[(&str, &[&str])] = &[
    ("rusqlite", &["sallyport-store"]),
    ("rusqlite_migration", &["sallyport-store"]),
    ("libsqlite3-sys", &["sallyport-store"]),
    ("cryptoki", &["sallyport-hsm", "sallyport-e2e"]),
    ("axum", &["sallyport"]),
];

/// Packages that must not be anywhere: a second TLS stack or async runtime, or C cryptography that we do not want to answer for.
const NOWHERE: &[&str] = &[
    "async-std",
    "aws-lc-rs",
    "aws-lc-sys",
    "boring",
    "boring-sys",
    "mbedtls",
    "native-tls",
    "openssl",
    "openssl-sys",
    "reqwest",
    "schannel",
    "security-framework",
    "smol",
];

#[test]
fn our_packages_depend_on_each_other_in_one_direction() {
    let ours: BTreeSet<&str> = OUR_RULE.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        ours,
        METADATA.members.iter().map(String::as_str).collect(),
        "every workspace member needs a row in OUR_RULE"
    );
    for (package, allowed) in OUR_RULE {
        for dependency in METADATA.declared(package) {
            let fine =
                !ours.contains(dependency.as_str()) || allowed.contains(&dependency.as_str());
            assert!(fine, "{package} must not depend on {dependency}");
        }
    }
}

#[test]
fn core_reaches_no_input_or_output() {
    let below = METADATA.closure("sallyport-core");
    for name in INPUT_OUTPUT {
        assert!(!below.contains(*name), "sallyport-core reaches {name}");
    }
    let direct = METADATA.declared("sallyport-core");
    for name in ["getrandom", "rand", "tokio", "http-body-util"] {
        assert!(!direct.contains(name), "sallyport-core must take {name}'s work as a parameter");
    }
}

#[test]
fn foreign_packages_stay_in_their_home() {
    for (foreign, homes) in ONLY_HOME {
        for package in &METADATA.members {
            let here = METADATA.declared(package).contains(*foreign);
            assert!(
                !here || homes.contains(&package.as_str()),
                "{foreign} belongs to {homes:?}, not to {package}"
            );
        }
    }
    assert!(!METADATA.closure("sallyport-provisioning").contains("rusqlite"));
}

#[test]
fn unwanted_packages_are_nowhere() {
    for name in NOWHERE {
        assert!(
            !METADATA.resolved.contains(*name),
            "{name} is in the tree: `cargo tree -i {name}`"
        );
    }
}

static METADATA: LazyLock<Metadata> = LazyLock::new(Metadata::load);

/// What `cargo metadata` says, reduced to names.
struct Metadata {
    members: BTreeSet<String>,
    /// Package name to every dependency named in its manifest.
    declared: BTreeMap<String, BTreeSet<String>>,
    /// Every package that Linux builds resolve to.
    resolved: BTreeSet<String>,
    /// Package name to what it links outside tests.
    links: BTreeMap<String, BTreeSet<String>>,
}

impl Metadata {
    fn load() -> Self {
        let output = Command::new(repository::cargo())
            .args(["metadata", "--format-version=1", "--locked", "--offline"])
            .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
            .current_dir(repository::root())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let packages = json["packages"].as_array().unwrap();
        let name_of: BTreeMap<&str, &str> =
            packages.iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
        let names = |list: &Value| -> BTreeSet<String> {
            list.as_array().unwrap().iter().map(|d| text(&d["name"]).to_owned()).collect()
        };
        let mut links: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for node in json["resolve"]["nodes"].as_array().unwrap() {
            let linked = node["deps"].as_array().unwrap().iter().filter(|d| is_linked(d));
            let here = links.entry(name_of[text(&node["id"])].to_owned()).or_default();
            here.extend(linked.map(|d| name_of[text(&d["pkg"])].to_owned()));
        }
        Self {
            members: json["workspace_members"]
                .as_array()
                .unwrap()
                .iter()
                .map(|id| name_of[text(id)].to_owned())
                .collect(),
            declared: packages
                .iter()
                .map(|p| (text(&p["name"]).to_owned(), names(&p["dependencies"])))
                .collect(),
            resolved: links.keys().cloned().collect(),
            links,
        }
    }

    fn declared(&self, package: &str) -> &BTreeSet<String> {
        &self.declared[package]
    }

    /// Everything that `package` links, directly or not.
    fn closure(&self, package: &str) -> BTreeSet<String> {
        let mut seen = BTreeSet::new();
        let mut queue = vec![package.to_owned()];
        while let Some(name) = queue.pop() {
            for next in self.links.get(&name).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    queue.push(next.clone());
                }
            }
        }
        seen
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// Whether a dependency ends up in the program: not one of tests or build scripts alone.
fn is_linked(dependency: &Value) -> bool {
    dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null())
}
