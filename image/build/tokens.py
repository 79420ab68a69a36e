"""The tokens that an image is built for: the packages and files of each, and modules of vendors by hash.

An image has a module for each chosen kind, and a description of it in `usr/lib/sallyport/tokens/KIND.toml`, which is all that the box
ever loads. Kinds made of Debian packages are in `lock/token-KIND.want` and `.lock`, `system/tokens/KIND.list` (what the packages give),
`KIND.wants` (what starts) and the folder `KIND` (our own files). A vendor's files are in a folder with a `vendor.lock`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

from . import lock
from .pool import digest

NONE = "none"
VENDOR = "vendor:"
VENDOR_LOCK = "vendor.lock"
DESCRIPTIONS = "usr/lib/sallyport/tokens"
# Where a vendor's files may go, and by what names: never over a file that is there.
PLACES = re.compile(r"(usr/lib|usr/share|etc)(/[A-Za-z0-9@_+-][A-Za-z0-9@._+-]*)+")


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen at build."""

    kinds: tuple[str, ...]
    vendors: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class VendorFile:
    """One file of a vendor."""

    path: Path
    sha256: str
    place: str


def parse(text: str, known: Path) -> Choice:
    """Reads a choice like `opensc,tpm2,vendor:FOLDER`; `known` is the folder with the lists of kinds."""
    words = [word for word in text.split(",") if word not in ("", NONE)]
    vendors = tuple(Path(word.removeprefix(VENDOR)).resolve() for word in words if word.startswith(VENDOR))
    kinds = tuple(sorted({word for word in words if not word.startswith(VENDOR)}))
    there = kinds_in(known)
    strangers = set(kinds) - set(there)
    if strangers:
        raise lock.LockError(f"there is no token {' '.join(sorted(strangers))}; there are {', '.join(there)}, {VENDOR}FOLDER and {NONE}")
    return Choice(kinds, vendors)


def kinds_in(folder: Path) -> list[str]:
    """The kinds that are made of packages."""
    return sorted(path.stem for path in folder.glob("*.list"))


def merged(root: lock.Lock, others: dict[str, lock.Lock]) -> lock.Lock:
    """The packages of the root with those of the chosen tokens. All are of the same day."""
    packages = {package.name: package for package in root.packages}
    for name, other in others.items():
        if other.date != root.date:
            raise lock.LockError(f"{name}.lock and root.lock are of different days: run `make image-lock`")
        for package in other.packages:
            if packages.setdefault(package.name, package) != package:
                raise lock.LockError(f"{name}.lock has another {package.name} than others: run `make image-lock`")
    return lock.Lock(root.date, tuple(packages[name] for name in sorted(packages)))


def vendor_files(folder: Path) -> list[VendorFile]:
    """The files that a vendor's lock names, as `FILE SHA256 PLACE` each, once their content is held against it."""
    listed = folder / VENDOR_LOCK
    if not listed.is_file():
        raise lock.LockError(f"{folder} has no {VENDOR_LOCK}: one line for each file, with its name there, its SHA-256 and its place in the image")
    files = [_vendor_file(folder, line) for line in lock.names(listed)]
    if not any(file.place.startswith(f"{DESCRIPTIONS}/") and file.place.endswith(".toml") for file in files):
        raise lock.LockError(f"{listed} describes no token: one file goes to {DESCRIPTIONS}/KIND.toml")
    return files


def _vendor_file(folder: Path, line: str) -> VendorFile:
    fields = line.split()
    if len(fields) != 3 or not lock.HASH.fullmatch(fields[1]):
        raise lock.LockError(f"{VENDOR_LOCK}: {line!r} is not `FILE SHA256 PLACE`")
    name, sha256, place = fields
    path = folder / name
    if "/" in name or not path.is_file():
        raise lock.LockError(f"{folder} has no file {name}")
    if not PLACES.fullmatch(place) or ".." in place:
        raise lock.LockError(f"{VENDOR_LOCK}: {name} cannot go to {place}: below usr/lib, usr/share or etc")
    found = digest(path)
    if found != sha256:
        raise lock.LockError(f"{name} is not the one that {VENDOR_LOCK} names: its SHA-256 is {found}, not {sha256}")
    return VendorFile(path, sha256, place)


def for_tests(root: Path) -> list[str]:
    """The kinds in a tree that protect nothing."""
    found = sorted((root / DESCRIPTIONS).glob("*.toml"))
    return [path.stem for path in found if tomllib.loads(path.read_text(encoding="utf-8")).get("for_tests")]
