"""Compiles `sallyport` and `sallyctl` inside the tools tree: same sources, same toolchain, same paths, same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
from pathlib import Path

from . import lock, manifest, report
from .tree import Mount, Tree

PACKAGES = {"sallyport": "sallyport", "sallyport-provisioning": "sallyctl"}
TARGET = "x86_64-unknown-linux-gnu"
# The folder of the crates beside the packages that a release keeps.
CRATES = "crates"
# Where the crates are, in the words of cargo's configuration.
VENDORED = ["--config", 'source.crates-io.replace-with="vendored"', "--config", 'source.vendored.directory="/mnt/vendor"']


@dataclasses.dataclass(frozen=True)
class Toolchain:
    """The Rust toolchain of this machine."""

    folder: Path
    version: str
    sha256: str

    def text(self) -> str:
        """As `rust.lock` has it."""
        return f"# Written by `make image-lock`: the toolchain that compiles the programs of an image.\nversion {self.version}\nsha256 {self.sha256}\n"


def toolchain() -> Toolchain:
    """The toolchain that `rustc` of this machine belongs to, with a hash over its files."""
    folder = Path(_ask(["rustc", "--print", "sysroot"]))
    files = [folder / "bin/rustc", folder / "bin/cargo", *(folder / "lib").glob("*.so*")]
    files += (path for path in (folder / "lib/rustlib" / TARGET).rglob("*") if path.is_file())
    total = hashlib.sha256()
    for path in sorted(files):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return Toolchain(folder, _ask([str(folder / "bin/rustc"), "--version"]).removeprefix("rustc "), total.hexdigest())


def locked_toolchain(path: Path, *, any_version: bool) -> Toolchain:
    """This machine's toolchain, if it is the one that the lock names."""
    found = toolchain()
    if not any_version and found.text() != path.read_text(encoding="utf-8"):
        wanted = dict(line.split(" ", 1) for line in path.read_text(encoding="utf-8").splitlines() if line[0] != "#")
        raise lock.LockError(
            f"images are compiled with Rust {wanted['version']}, and this is {found.version} (files {found.sha256[:16]}, wanted "
            f"{wanted['sha256'][:16]}): install it with `rustup toolchain install {wanted['version'].split()[0]}` and set "
            f"RUSTUP_TOOLCHAIN; RUST=any takes what is there, for an image that nobody else can rebuild"
        )
    return found


def compile(tools: Tree, source: Path, rust: Toolchain, folder: Path, kept: Path | None = None) -> Path:  # noqa: A001
    """Compiles what changed, of crates that a release `kept` or else of the registry's; returns the folder with the programs."""
    target = folder / "cargo"
    target.mkdir(parents=True, exist_ok=True)
    vendor = kept / CRATES if kept and (kept / CRATES).exists() else folder / "vendor"
    if vendor == folder / "vendor":
        _vendor(source, vendor)
    report.say("compiling the programs (optimised: a quarter of an hour from scratch)")
    packages = [part for name in PACKAGES for part in ("-p", name)]
    mounts = [Mount(source, "source"), Mount(vendor, "vendor"), Mount(rust.folder, "rust"), Mount(target, "target", writable=True)]
    prefixes = {"/mnt/source": "sallyport", "/mnt/vendor": "crates", "/mnt/rust": "rust"}
    environment = {
        "PATH": "/mnt/rust/bin:/usr/bin:/bin",
        "CARGO_HOME": "/tmp/cargo",
        "CARGO_TARGET_DIR": "/mnt/target",
        "CARGO_INCREMENTAL": "0",
        "CARGO_PROFILE_RELEASE_DEBUG": "none",
        "CARGO_PROFILE_RELEASE_STRIP": "symbols",
        "RUSTFLAGS": " ".join(f"--remap-path-prefix={path}={name}" for path, name in prefixes.items()),
    }
    command = ["cargo", "build", "--quiet", "--manifest-path", "/mnt/source/Cargo.toml", "--locked", "--offline", "--release"]
    tools.run([*command, *packages, "--bins", *VENDORED], mounts, environment)
    return target / "release"


def keep_crates(source: Path, folder: Path) -> None:
    """Copies the locked crates into a folder that a release keeps. Cargo holds each file against `Cargo.lock` when it compiles them."""
    _vendor(source, folder / CRATES)


def crates(source: Path) -> list[manifest.Json]:
    """The crates in the programs, for the bill of materials."""
    query = ["cargo", "metadata", "--locked", "--offline", "--format-version=1", f"--filter-platform={TARGET}"]
    done = subprocess.run(query, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise lock.LockError(f"cargo cannot tell which crates there are: {done.stderr.strip()}")
    return manifest.crates_of(json.loads(done.stdout), (source / "Cargo.lock").read_text(encoding="utf-8"), set(PACKAGES))


def _vendor(source: Path, folder: Path) -> None:
    """Copies the locked crates into a folder, through the cargo of this machine: it holds them against `Cargo.lock`."""
    stamp = folder / "complete"
    wanted = hashlib.sha256((source / "Cargo.lock").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="ascii") == wanted:
        return
    report.say("fetching the crates")
    command = ["cargo", "vendor", "--quiet", "--locked", "--versioned-dirs", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise lock.LockError(f"cargo cannot fetch the crates: {done.stderr.strip()}")
    stamp.write_text(wanted, encoding="ascii")


def _ask(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
