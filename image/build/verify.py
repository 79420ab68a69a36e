"""Builds an image twice, as differently as one machine allows, and compares every artefact bit for bit.

The second build has another folder for sources and artefacts, another umask, another time zone, another language, other ids in the
user namespace where the machine allows that, and a later clock; the programs are compiled from scratch in both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Set
from pathlib import Path

from . import report
from .pool import digest

# Work in progress and caches, which nobody is given.
NOT_ARTEFACTS = {"cargo", "vendor", "new"}
# Ends of what nobody makes without the keys, and of what lists it.
WITH_KEYS = (".update", ".enrol.raw", ".manifest.json", "SHA256SUMS")
# Who the second build is made by.
ANOTHER_ID = 4711
# Copied for the second build: everything that is under version control, and nothing else.
SOURCES = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]


class Different(Exception):
    """The two builds are not the same; the text says where."""


def run(repository: Path, folder: Path, binaries: Path | None) -> None:
    """Builds twice below `folder`, and once more with the signatures of the first in place of keys; fails if a single bit differs."""
    shutil.rmtree(folder, ignore_errors=True)
    here, there = folder / "first", folder / "another place with a long name/second"
    sources = there / "sources"
    _copy_sources(repository, sources)
    more = ["--binaries", str(binaries.resolve())] if binaries else []
    plain = dict(os.environ)
    other = {**plain, "TZ": "Pacific/Kiritimati", "LANG": "C", "LC_ALL": "C", "LOGNAME": "somebody", "USER": "somebody"}
    _build(repository, here, more, plain, umask=0o022, another_user=False)
    _build(sources, there / "artefacts", more, other, umask=0o077, another_user=True)
    compare(here, there / "artefacts")
    keyless = folder / "without keys"
    programs = binaries.resolve() if binaries else here / "cargo/release"
    _build(repository, keyless, ["--binaries", str(programs), "--signatures", str(here)], plain, umask=0o022, another_user=False)
    compare(here, keyless, {name for path in here.iterdir() if (name := path.name).endswith(WITH_KEYS)})


def compare(first: Path, second: Path, without: Set[str] = frozenset()) -> None:
    """Compares two folders of artefacts, but for some."""
    names = sorted({path.name for folder in (first, second) for path in folder.iterdir()} - NOT_ARTEFACTS - without)
    different = []
    for name in names:
        found = [digest(folder / name) if (folder / name).exists() else "absent" for folder in (first, second)]
        report.say(f"{'same     ' if found[0] == found[1] else 'DIFFERENT'} {name} {found[0][:16]}")
        if found[0] != found[1]:
            different.append(name)
    if different:
        # What is inside the smallest is inside the disk as well.
        both = [name for name in different if (first / name).exists() and (second / name).exists()]
        for name in sorted(both, key=lambda name: (first / name).stat().st_size)[:1]:
            subprocess.run(["diffoscope", first / name, second / name], check=False)
        raise Different(f"the two builds differ in {', '.join(different)}")
    report.say(f"{len(names)} artefacts are the same in both builds")


def _build(sources: Path, out: Path, more: list[str], environment: dict[str, str], *, umask: int, another_user: bool) -> None:
    report.say(f"building {sources} into {out}")
    command = [sys.executable, "-m", "build", "image", "--out", str(out), *more]
    if another_user and os.geteuid() == 0:
        # Who builds is somebody else there: nobody's root, with another number, and the rest of the machine belongs to strangers.
        command = ["unshare", "--user", f"--map-user={ANOTHER_ID}", f"--map-group={ANOTHER_ID}", "--", *command]
    variables = {**environment, "PYTHONPATH": str(sources / "image"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=variables, umask=umask, check=False, cwd=sources)
    if done.returncode != 0:
        raise Different("one of the two builds failed")


def _copy_sources(repository: Path, folder: Path) -> None:
    listed = subprocess.run(SOURCES, cwd=repository, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        source = repository / name
        if name and source.is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target, follow_symlinks=False)
