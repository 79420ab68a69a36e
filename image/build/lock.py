"""Lock files: which Debian packages an image is made of and built with, each by its hash."""

from __future__ import annotations

import dataclasses
import datetime
import re
from pathlib import Path

HEADER = "# Written by `make image-lock`: name, version, architecture, SHA-256, bytes, path in the archive.\n"
HASH = re.compile(r"[0-9a-f]{64}")


class LockError(Exception):
    """A lock file that cannot be used; the text says what to do."""


@dataclasses.dataclass(frozen=True, order=True)
class Package:
    """One .deb file."""

    name: str
    version: str
    architecture: str
    sha256: str
    size: int
    path: str


@dataclasses.dataclass(frozen=True)
class Lock:
    """The packages of one tree, and the date of the archive that they are from."""

    date: datetime.datetime
    packages: tuple[Package, ...]

    @property
    def epoch(self) -> int:
        """The date in seconds since 1970: every time stamp in the image."""
        return int(self.date.timestamp())

    def package(self, name: str) -> Package:
        """The package of a name."""
        for package in self.packages:
            if package.name == name:
                return package
        raise LockError(f"{name} is not in the lock: add it to the list beside it and run `make image-lock`")

    def text(self) -> str:
        """The lock file, sorted by name."""
        date = self.date.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        rows = [" ".join(map(str, dataclasses.astuple(package))) for package in sorted(self.packages)]
        return HEADER + f"date {date}\n" + "".join(f"{row}\n" for row in rows)


def parse(text: str, name: str) -> Lock:
    """Reads a lock file; `name` is for errors."""
    date: datetime.datetime | None = None
    packages: list[Package] = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        if fields[0] == "date" and len(fields) == 2:
            date = datetime.datetime.strptime(fields[1], "%Y-%m-%dT%H:%M:%S%z")
            continue
        if len(fields) != 6 or not HASH.fullmatch(fields[3]) or not fields[4].isdigit():
            raise LockError(f"{name}:{number} is no package: run `make image-lock`")
        packages.append(Package(fields[0], fields[1], fields[2], fields[3], int(fields[4]), fields[5]))
    if date is None or not packages:
        raise LockError(f"{name} has no date or no packages: run `make image-lock`")
    names = [package.name for package in packages]
    if len(set(names)) != len(names):
        raise LockError(f"{name} has a package twice: run `make image-lock`")
    return Lock(date, tuple(packages))


def read(path: Path) -> Lock:
    """Reads the lock file at `path`."""
    return parse(path.read_text(encoding="utf-8"), path.name)


def names(path: Path) -> list[str]:
    """The entries of a list with comments: one per line, in order."""
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]
