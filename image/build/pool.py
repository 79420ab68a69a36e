"""The pool: every locked package as a file named by its hash, fetched once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from . import lock, report, resolve

HELPER = Path("/usr/lib/apt/apt-helper")
# As many files as one call of apt fetches: progress is told after each call.
BATCH = 16


def cache() -> Path:
    """The folder of this user for what is made once and kept."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sallyport" / "image"


class Pool:
    """Packages by hash. `fallback` is a folder that a release keeps, asked before the archive."""

    def __init__(self, folder: Path, fallback: Path | None = None) -> None:
        self.folder = folder
        self._fallback = fallback

    def path(self, package: lock.Package) -> Path:
        """Where a package is once it was fetched."""
        return self.folder / f"{package.sha256}.deb"

    def fetch(self, packages: Iterable[lock.Package]) -> None:
        """Brings in what is not there yet, and believes nothing but the hash."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [package for package in packages if not self.path(package).exists()]
        missing = [package for package in missing if not self._take_kept(package)]
        if not missing:
            return
        total = sum(package.size for package in missing)
        report.say(f"{len(missing)} packages to fetch, {total >> 20} MiB, into {self.folder}")
        done = 0
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            self._download(batch)
            done += sum(package.size for package in batch)
            report.say(f"fetched {start + len(batch)} of {len(missing)}, {done >> 20} of {total >> 20} MiB")

    def keep(self, packages: Iterable[lock.Package], folder: Path) -> None:
        """Copies packages into a folder that a release keeps, so that it can be rebuilt when the archive has moved on."""
        folder.mkdir(parents=True, exist_ok=True)
        for package in packages:
            kept = folder / f"{package.sha256}.deb"
            if not kept.exists():
                shutil.copyfile(self.path(package), kept)

    def _take_kept(self, package: lock.Package) -> bool:
        if self._fallback is None:
            return False
        kept = self._fallback / f"{package.sha256}.deb"
        if not kept.exists():
            return False
        self._accept(kept, package, copy=True)
        return True

    def _download(self, packages: list[lock.Package]) -> None:
        errors = ""
        left = packages
        for site in resolve.sites().values():
            arguments = []
            for package in left:
                arguments += [f"{site.rstrip('/')}/{package.path}", str(self._part(package)), f"SHA256:{package.sha256}"]
            done = subprocess.run([HELPER, "download-file", *arguments], capture_output=True, text=True, check=False)
            errors = done.stderr.strip()
            for package in left:
                if self._part(package).exists():
                    self._accept(self._part(package), package, copy=False)
            left = [package for package in left if not self.path(package).exists()]
            if not left:
                return
        raise lock.LockError(
            f"the archive no longer has {left[0].name} {left[0].version}: give the folder with the release's packages "
            f"(PACKAGES=FOLDER), or renew the lock with `make image-lock`\n{errors}"
        )

    def _part(self, package: lock.Package) -> Path:
        return self.folder / f"{package.sha256}.part"

    def _accept(self, path: Path, package: lock.Package, *, copy: bool) -> None:
        found = digest(path)
        if found != package.sha256:
            if not copy:
                path.unlink()
            raise lock.LockError(f"{package.name} is not the locked one: its SHA-256 is {found}, not {package.sha256}")
        if copy:
            shutil.copyfile(path, self._part(package))
            path = self._part(package)
        path.replace(self.path(package))


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
