//! The repository's own rules, as tests: what stands at the top level, how a source file opens, how
//! long it may be, and which words must not be in it.

use std::path::{Path, PathBuf};

use sallyport_e2e::repository;

/// The longest a source file may be, its tests at the end not counted.
const CODE_LINES_MAX: usize = 600;

/// What may stand at the top level beside files whose name begins with a dot.
const TOP_LEVEL: &[&str] = &[
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "appliance",
    "hsm",
    "image",
    "provisioning",
    "tests",
];

/// What tools leave behind; `.gitignore` keeps it out of the repository.
const LEFT_BY_TOOLS: &[&str] =
    &["target", "node_modules", "__pycache__", "artifacts", "coverage", "corpus-found"];

/// Words that promise work nobody will do, or switch a check off. They are split so that this file
/// does not contain them.
const FORBIDDEN_IN_CODE: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("unimple", "mented!("),
    concat!("#[ig", "nore"),
    concat!("assert!(", "true)"),
    concat!("#[al", "low("),
    concat!("#![al", "low("),
    concat!("dbg", "!("),
];

/// Places that exist on one machine only.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/fa", "rm/"),
    concat!("../sh", "ared"),
    concat!("/ro", "ot/"),
];

/// What the pure core must not name: it has no clock, no randomness and no input or output.
const FORBIDDEN_IN_CORE: &[&str] = &[
    "SystemTime::now",
    "Instant::now",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "std::thread::sleep",
    "getrandom::",
    "SystemRandom",
    "OsRng",
    "thread_rng",
    "rand::rng(",
];

#[test]
fn top_level_holds_only_what_the_map_shows() {
    let strangers: Vec<String> = children(&repository::root())
        .iter()
        .map(|path| name_of(path))
        .filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()))
        .collect();
    assert!(strangers.is_empty(), "no place at the top level for {strangers:?}");
}

#[test]
fn every_source_file_says_what_it_is_for() {
    report("must open with a `//!` line", &rust_files(), |text| {
        if text.starts_with("//! ") { Vec::new() } else { vec![1] }
    });
}

#[test]
fn no_source_file_is_longer_than_a_reader_can_hold() {
    let mut files = rust_files();
    files.retain(|path| name_of(path) != "tests.rs");
    report("has too many lines of code; is there a seam?", &files, |text| {
        let code = code_of(text).lines().count();
        if code > CODE_LINES_MAX { vec![code] } else { Vec::new() }
    });
}

#[test]
fn a_module_stands_beside_its_folder() {
    let found: Vec<PathBuf> =
        rust_files().into_iter().filter(|path| name_of(path) == "mod.rs").collect();
    assert!(found.is_empty(), "use `name.rs` beside `name/` instead of {found:?}");
}

#[test]
fn no_file_holds_a_promise_or_a_switched_off_check() {
    let mut files = rust_files();
    files.extend(files_with_extension(&["py", "sh", "mjs", "toml"]));
    files.push(repository::root().join("Makefile"));
    report("holds a word that must not be there", &files, |text| {
        lines_holding(text, FORBIDDEN_IN_CODE)
    });
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let files =
        files_with_extension(&["rs", "py", "sh", "mjs", "toml", "md", "sql", "html", "yml"]);
    report("names a path of one machine", &files, |text| lines_holding(text, MACHINE_PATHS));
}

/// Each file beside the folder of an integration test would be one more program to link.
#[test]
fn a_package_has_one_integration_test() {
    let manifests = files_with_extension(&["toml"]);
    let packages = manifests.iter().filter(|path| name_of(path) == "Cargo.toml");
    let folders = packages.map(|path| path.with_file_name("tests")).filter(|path| path.is_dir());
    let strangers: Vec<PathBuf> =
        folders.flat_map(|folder| children(&folder)).filter(|path| path.is_file()).collect();
    let strangers: Vec<&PathBuf> =
        strangers.iter().filter(|path| path.extension().is_some_and(|e| e == "rs")).collect();
    assert!(strangers.is_empty(), "belongs into tests/it/: {strangers:?}");
}

#[test]
fn core_is_pure() {
    let core = repository::root().join("appliance/core/src");
    let mut files = rust_files();
    files.retain(|path| path.starts_with(&core) && name_of(path) != "tests.rs");
    assert!(!files.is_empty(), "no sources under {}", core.display());
    report("names a clock, randomness or input/output", &files, |text| {
        lines_holding(code_of(text), FORBIDDEN_IN_CORE)
    });
}

/// Fails with `file:line: rule` for every line that `find` names.
fn report(rule: &str, files: &[PathBuf], find: impl Fn(&str) -> Vec<usize>) {
    let root = repository::root();
    let mut complaints = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path).unwrap();
        let shown = path.strip_prefix(&root).unwrap().display().to_string();
        complaints.extend(find(&text).into_iter().map(|line| format!("{shown}:{line}: {rule}")));
    }
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// The numbers of the lines that hold one of `words`; comments count, string quotes do not protect.
fn lines_holding(text: &str, words: &[&str]) -> Vec<usize> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
        .map(|(index, _)| index + 1)
        .collect()
}

/// The part of a source file before the tests at its end.
fn code_of(text: &str) -> &str {
    text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

fn rust_files() -> Vec<PathBuf> {
    files_with_extension(&["rs"])
}

fn files_with_extension(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![repository::root()];
    while let Some(folder) = folders.pop() {
        for path in children(&folder) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| extensions.iter().any(|want| e == *want)) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no files with the extensions {extensions:?}");
    found
}

/// What is in `folder` and belongs to the repository.
fn children(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = name_of(path);
            !LEFT_BY_TOOLS.contains(&name.as_str())
                && ![".git", ".dev", ".venv"].contains(&name.as_str())
        })
        .collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
