"""The command line: `python3 -m build lock|image|verify`, called by `make image-lock`, `make image` and `make image-verify`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from pathlib import Path

from . import lock, pool, programs, report, resolve, tokens, tree, variables, verify
from .tree import Mount

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKS = REPOSITORY / "image" / "lock"
KINDS = REPOSITORY / "image" / "system" / "tokens"


def main() -> None:
    """Does what the command line says."""
    arguments = parser().parse_args()
    try:
        arguments.run(arguments)
    except (lock.LockError, tree.CommandFailed, verify.Different) as error:
        report.warn(str(error))
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="build", description=__doc__)
    commands = top.add_subparsers(required=True)
    commands.add_parser("lock", help="renew the locks").set_defaults(run=renew)
    image = commands.add_parser("image", help="build the image")
    image.set_defaults(run=build)
    again = commands.add_parser("verify", help="build everything twice and compare every artefact")
    again.set_defaults(run=lambda arguments: verify.run(REPOSITORY, arguments.folder, arguments.binaries))
    again.add_argument("--folder", type=Path, default=REPOSITORY / "target/image-verify", help="where the two builds go")
    again.add_argument("--binaries", type=Path, help="folder with programs: compares all but the compiler's work")
    revoke = commands.add_parser("revoke", help="make the file that revokes boot programs in firmwares")
    revoke.set_defaults(run=lambda arguments: revocation(arguments.programs, arguments.keys, arguments.out))
    revoke.add_argument("programs", type=Path, nargs="+", help="boot programs, signed or not")
    revoke.add_argument("--keys", type=Path, help="folder with KEK.crt and KEK.key; test keys if not given")
    revoke.add_argument("--out", type=Path, default=REPOSITORY / "target/image/dbx.auth", help="where the file goes")
    image.add_argument("--out", type=Path, default=REPOSITORY / "target/image", help="where the artefacts go")
    image.add_argument("--version", help="the version; that of Cargo.toml if not given")
    image.add_argument("--keys", type=Path, help="folder with PK, KEK, db (.crt, .key), pcr and update (.pub, .key); test keys if not given")
    image.add_argument("--tokens", default=resolve.TOKENS, help="for which tokens, by commas: see lock/token-*.want; `vendor:FOLDER`, `none`")
    image.add_argument("--packages", type=Path, help="folder with what a release kept: packages and crates")
    image.add_argument("--keep", type=Path, help="folder for packages and crates that this image is made of and with")
    image.add_argument("--signatures", type=Path, help="folder of a release: its public keys and signatures, in place of keys")
    image.add_argument("--binaries", type=Path, help="folder with programs compiled elsewhere: for development only")
    image.add_argument("--overlay", type=Path, help="folder with more files for the root, over our own: for development only")
    image.add_argument("--command-line", default="", help="more for the kernel's command line: for development only")
    image.add_argument("--any-rust", action="store_true", help="compile with a toolchain that is not the locked one")
    return top


def renew(_: argparse.Namespace) -> None:
    """Renews the locks of packages and toolchain."""
    resolve.renew(LOCKS)
    rust = programs.toolchain()
    (LOCKS / "rust.lock").write_text(rust.text(), encoding="utf-8")
    report.say(f"rust.lock: {rust.version}")


def build(arguments: argparse.Namespace) -> None:
    """Builds the image."""
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    locks = {name: lock.read(LOCKS / f"{name}.lock") for name in ("root", "tools")}
    packages = pool.Pool(pool.cache() / "pool", arguments.packages)
    tools = tree.make("tools", locks["tools"], packages)
    chosen = tokens.parse(arguments.tokens, KINDS)
    token_locks = {f"token-{kind}": lock.read(LOCKS / f"token-{kind}.lock") for kind in chosen.kinds}
    in_root = tokens.merged(locks["root"], token_locks)
    packages.fetch(in_root.packages)
    if arguments.keep:
        for locked in (in_root, locks["tools"]):
            packages.keep(locked.packages, arguments.keep)
        programs.keep_crates(REPOSITORY, arguments.keep)
        report.say(f"kept: {arguments.keep}")
    vendors = {f"vendor-{number}": tokens.vendor_files(folder) for number, folder in enumerate(chosen.vendors)}
    keys = arguments.keys or arguments.signatures or test_keys(tools)
    recorded: dict[str, object] = {
        "tools": {"packages": len(locks["tools"].packages), "lock_sha256": pool.digest(LOCKS / "tools.lock")},
        "root_lock_sha256": pool.digest(LOCKS / "root.lock"),
        "token_lock_sha256": {kind: pool.digest(LOCKS / f"token-{kind}.lock") for kind in chosen.kinds},
        "vendor_files": {file.place: file.sha256 for files in vendors.values() for file in files},
        "crates_lock_sha256": pool.digest(REPOSITORY / "Cargo.lock"),
    }
    if arguments.binaries:
        report.warn("the programs were compiled elsewhere: this image is for development, and nobody can rebuild it")
        binaries: Path = arguments.binaries
    else:
        rust = programs.locked_toolchain(LOCKS / "rust.lock", any_version=arguments.any_rust)
        recorded["rust"] = {"version": rust.version, "sha256": rust.sha256}
        binaries = programs.compile(tools, REPOSITORY, rust, out, arguments.packages)
    recorded["crates"] = programs.crates(REPOSITORY)
    artefacts = out / "new"
    artefacts.mkdir(exist_ok=True)
    order = {
        "version": arguments.version or version(),
        "schema": len(list((REPOSITORY / "appliance/store/migrations").glob("*.sql"))),
        "command_line": arguments.command_line,
        "recorded": recorded,
        "tokens": chosen.kinds,
        "vendors": list(vendors),
    }
    given = {"overlay": arguments.overlay, "signatures": arguments.signatures}
    mounts = [
        *(Mount(folder, name) for name, folder in given.items() if folder),
        Mount(REPOSITORY / "image", "image"),
        Mount(packages.folder, "pool"),
        Mount(keys, "keys"),
        Mount(binaries, "binaries"),
        Mount(artefacts, "out", writable=True),
        *(Mount(folder, name) for folder, name in zip(chosen.vendors, vendors, strict=True)),
    ]
    environment = {"PYTHONPATH": "/mnt/image", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    tools.run(["python3", "-m", "build.assemble", json.dumps(order)], mounts, environment)
    for path in sorted(artefacts.iterdir()):
        path.replace(out / path.name)
    artefacts.rmdir()
    report.say(f"done: {out}")


def revocation(programs: list[Path], keys: Path | None, out: Path) -> None:
    """Makes the update of dbx that revokes boot programs: it is appended to what a firmware has."""
    locked = lock.read(LOCKS / "tools.lock")
    tools = tree.make("tools", locked, pool.Pool(pool.cache() / "pool"))
    digests = [variables.digest(path.read_bytes()).hex() for path in programs]
    out.parent.mkdir(parents=True, exist_ok=True)
    # The time of a signature is that of the packages, and an update of dbx that is appended may have any.
    make = (
        "import sys; from pathlib import Path; from build import variables; "
        "revoked = variables.hashes(map(bytes.fromhex, sys.argv[3:])); "
        "Path(sys.argv[1]).write_bytes(variables.signed('dbx', revoked, Path('/mnt/keys'), int(sys.argv[2]), append=True))"
    )
    mounts = [Mount(REPOSITORY / "image", "image"), Mount(keys or test_keys(tools), "keys"), Mount(out.parent.resolve(), "out", writable=True)]
    environment = {"PYTHONPATH": "/mnt/image", "PYTHONDONTWRITEBYTECODE": "1"}
    tools.run(["python3", "-c", make, f"/mnt/out/{out.name}", str(locked.epoch), *digests], mounts, environment)
    for path, digest in zip(programs, digests, strict=True):
        report.say(f"{out.name} revokes {path.name}: {digest}")


def test_keys(tools: tree.Tree) -> Path:
    """Keys for tests, made once and kept in this user's cache."""
    folder = pool.cache() / "test-keys"
    report.warn(f"TEST KEYS sign this image ({folder}): whoever has them can replace it unnoticed. KEYS=FOLDER takes your own.")
    if not (folder / "update.pub").exists():
        make_keys(tools, folder)
        report.say(f"test keys made: {folder}")
    return folder


def make_keys(tools: tree.Tree, folder: Path) -> None:
    """Makes the keys for tests that are not in a folder."""
    old_mask = os.umask(0o077)
    folder.mkdir(parents=True, exist_ok=True)
    os.umask(old_mask)
    mounts = [Mount(REPOSITORY / "image", "image"), Mount(folder, "keys", writable=True)]
    make = "from pathlib import Path; from build import signing; signing.generate(Path('/mnt/keys'))"
    tools.run(["python3", "-c", make], mounts, {"PYTHONPATH": "/mnt/image", "PYTHONDONTWRITEBYTECODE": "1"})


def version() -> str:
    """The version of the workspace."""
    manifest = tomllib.loads((REPOSITORY / "Cargo.toml").read_text(encoding="utf-8"))
    return str(manifest["workspace"]["package"]["version"])


if __name__ == "__main__":
    main()
