"""Other versions of the image, and images that are wrong in one way: built by the builder for the scenarios that need them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

from build import lock, pool, report, tree
from build.__main__ import LOCKS, REPOSITORY, make_keys
from build.tree import Mount

from .desk import Desk
from .machine import BootError

# Programs that are put in the place of the server: one that never says that it is ready, and one that does what a new version does to the
# database, a copy and another schema, and then ends.
HANGS = """\
#include <unistd.h>
int main(void) { for (;;) pause(); }
"""
CRASHES = """\
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#define DATA "/var/lib/sallyport/"
#define COPY DATA "before-update"
static void copy(const char *from, const char *to) {
  char piece[65536];
  int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  for (ssize_t n; in >= 0 && (n = read(in, piece, sizeof piece)) > 0;) if (write(out, piece, n) != n) return;
}
int main(void) {
  struct stat found;
  if (stat(COPY, &found) != 0) {
    mkdir(COPY ".making", 0700);
    copy(DATA "sallyport.db", COPY ".making/sallyport.db");
    copy(DATA "vault", COPY ".making/vault");
    rename(COPY ".making", COPY);
    /* The schema is the big-endian number at byte 60 of a database's header (SQLite, "user version"). */
    int database = open(DATA "sallyport.db", O_RDWR);
    unsigned char schema[4];
    if (pread(database, schema, 4, 60) == 4) { schema[3]++; pwrite(database, schema, 4, 60); }
    sync();
  }
  return 1;
}
"""


@dataclasses.dataclass(frozen=True)
class Variant:
    """An image that was built: the folder of its artefacts."""

    folder: Path
    version: str
    schema: str

    @property
    def disk(self) -> Path:
        """The disk."""
        return self.folder / f"sallyport-{self.version}.raw"

    @property
    def program(self) -> Path:
        """The boot program."""
        return self.folder / f"sallyport-{self.version}.efi"

    def update(self, desk: Desk, name: str, floor: str, signer: list[str]) -> Path:
        """Makes an update file of it at a desk, with these terms and this signer."""
        parts = {"root.erofs": "root", "root.verity": "verity", self.program.name: "uki", f"sallyport-{self.version}.roothash": "root-hash"}
        order = ["update", "make", "--release", self.version, "--schema", self.schema, "--floor", floor, "--from", "0.1.0"]
        for artefact, option in parts.items():
            order += [f"--{option}", desk.lay(self.folder / artefact)]
        made = desk.folder / name
        made.unlink(missing_ok=True)
        desk.sallyctl([*order, *signer, "--out", f"/mnt/desk/{name}"])
        return made


class Variants:
    """A folder for images, and the programs and keys that they are made of."""

    def __init__(self, folder: Path, binaries: Path, keys: Path) -> None:
        self._folder = folder
        self._binaries = binaries
        self._keys = keys

    def of(self, image: Path) -> Variant:
        """The image that is there, with its artefacts beside it."""
        return Variant(image.parent, image.stem.removeprefix("sallyport-"), _schema())

    def version(self, version: str) -> Variant:
        """The same image with another version."""
        return self._build(f"version-{version}", version, [])

    def broken(self, version: str, source: str, overlay: dict[str, str] | None = None) -> Variant:
        """A version with another program in the place of the server, and these files over those of the root."""
        name = f"broken-{version}"
        programs, files = self._folder / f"{name}.programs", self._folder / f"{name}.overlay"
        for folder in (programs, files):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        (programs / "server.c").write_text(source, encoding="ascii")
        compiler = ["cc", "-O1", "-o", "/mnt/programs/sallyport", "/mnt/programs/server.c"]
        self._tools().run(compiler, [Mount(programs, "programs", writable=True)])
        shutil.copy2(self._binaries / "sallyctl", programs / "sallyctl")
        for path, text in (overlay or {}).items():
            (files / path).parent.mkdir(parents=True, exist_ok=True)
            (files / path).write_text(text, encoding="ascii")
        return self._build(name, version, ["--overlay", str(files)], programs=programs)

    def foreign(self, version: str, *, key: str) -> Variant:
        """The image of this version with one key that is another: `db`, which signs boot programs, or `pcr`, which signs what the TPM measures."""
        keys, others = self._folder / f"foreign-{key}.keys", self._folder / "other-keys"
        others.mkdir(parents=True, exist_ok=True)
        make_keys(self._tools(), others)
        shutil.rmtree(keys, ignore_errors=True)
        shutil.copytree(self._keys, keys)
        for path in others.glob(f"{key}.*"):
            shutil.copy2(path, keys / path.name)
        return self._build(f"foreign-{key}", version, [], keys=keys)

    def _build(self, name: str, version: str, more: list[str], *, programs: Path | None = None, keys: Path | None = None) -> Variant:
        out = self._folder / name
        report.say(f"building the image {name}")
        where = ["--out", str(out), "--binaries", str(programs or self._binaries), "--keys", str(keys or self._keys)]
        order = [sys.executable, "-m", "build", "image", "--version", version, *where, *more]
        done = subprocess.run(order, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode != 0:
            raise BootError(f"{name} cannot be built: {done.stdout}{done.stderr}")
        return Variant(out, version, _schema())

    def _tools(self) -> tree.Tree:
        return tree.make("tools", lock.read(LOCKS / "tools.lock"), pool.Pool(pool.cache() / "pool"))


def _schema() -> str:
    return str(len(list((REPOSITORY / "appliance/store/migrations").glob("*.sql"))))
