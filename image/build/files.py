"""A tree by allow-list: the files that a list names, and the libraries that they are linked to. Nothing else gets in."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from . import elf

LIBRARIES = ("usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd")
MERGED = ("bin", "sbin", "lib", "lib64")
TARGET = re.compile(r"^(\S+)([:!]| =) *(.*)$")


class BuildError(Exception):
    """The image cannot be built; the text says what is wrong."""


class Allowed:
    """Copies what is allowed from one or more trees into a new one; the first that has a file gives it."""

    def __init__(self, sources: Iterable[Path], destination: Path) -> None:
        self._sources = list(sources)
        self._destination = destination
        for link in MERGED:
            self._link(link, f"usr/{link}")

    def add(self, entries: Iterable[str]) -> None:
        """Copies what the entries of a list name: `PATH`, `GLOB` or `dlopen LIBRARY`."""
        for entry in entries:
            if entry.startswith("dlopen "):
                self._library(entry.removeprefix("dlopen ").strip(), "the list")
                continue
            found = sorted({path for source in self._sources for path in _glob(source, entry)})
            if not found:
                raise BuildError(f"no package has {entry}")
            for path in found:
                self._copy(path)

    def overlay(self, folder: Path) -> None:
        """Adds files of this repository, and the libraries that they are linked to."""
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or path.is_file():
                self.place(path, str(path.relative_to(folder)))

    def place(self, path: Path, name: str, mode: int | None = None) -> None:
        """Adds one file under a name, over what a package may have there."""
        target = self._destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(target):
            target.unlink()
        shutil.copyfile(path, target, follow_symlinks=False)
        if not path.is_symlink():
            target.chmod(mode or (0o755 if os.access(path, os.X_OK) else 0o644))
            self._linked(target, name)

    def wants(self, path: Path) -> None:
        """Makes the links of a list: `TARGET: UNIT…` (wants), `TARGET! UNIT…` (requires), `NAME = UNIT` (alias)."""
        units = self._destination / "usr/lib/systemd/system"
        for line in path.read_text(encoding="utf-8").splitlines():
            line = line.split("#")[0].rstrip()
            found = TARGET.match(line)
            if not line:
                continue
            if not found:
                raise BuildError(f"{path.name}: {line!r} is neither `TARGET: UNIT…` nor `NAME = UNIT`")
            name, kind, values = found[1], found[2].strip(), found[3].split()
            for unit in values:
                template = re.sub(r"@[^.]*", "@", unit)
                if not (units / template).is_file():
                    raise BuildError(f"{path.name}: {name} wants {unit}, which is not there")
                if kind == "=":
                    (units / name).symlink_to(unit)
                    continue
                folder = units / f"{name}.{'wants' if kind == ':' else 'requires'}"
                folder.mkdir(exist_ok=True)
                (folder / unit).symlink_to(f"../{template}")

    def _copy(self, name: str) -> None:
        target = self._destination / name
        if os.path.lexists(target):
            return
        source = next(tree / name for tree in self._sources if os.path.lexists(tree / name))
        if source.is_symlink():
            link = os.readlink(source)
            self._link(name, link)
            follows = os.path.normpath(os.path.join(os.path.dirname(name), link))
            if not link.startswith("/") and any(os.path.lexists(tree / follows) for tree in self._sources):
                self._copy(follows)
        elif source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            # No program of an image needs more rights than whoever starts it.
            target.chmod(source.stat().st_mode & 0o755)
            self._linked(source, name)

    def _link(self, name: str, value: str) -> None:
        target = self._destination / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(target):
            target.symlink_to(value)

    def _linked(self, path: Path, name: str) -> None:
        for library in elf.needed(path):
            self._library(library, name)
        loader = elf.interpreter(path)
        if loader is not None:
            self._copy(f"usr{loader}")

    def _library(self, library: str, wanted_by: str) -> None:
        for folder in LIBRARIES:
            name = f"{folder}/{library}"
            if any(os.path.lexists(tree / name) for tree in self._sources):
                self._copy(name)
                return
        raise BuildError(f"{wanted_by} needs the library {library}, which no package of the root has")


def _glob(tree: Path, pattern: str) -> list[str]:
    if not any(sign in pattern for sign in "*?["):
        return [pattern] if os.path.lexists(tree / pattern) else []
    return [str(path.relative_to(tree)) for path in tree.glob(pattern)]
