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
# One that answers whoever connects, and no more.
ANSWERS = """\
#include <netinet/in.h>
#include <unistd.h>
int main(void) {
  static const char answer[] = "HTTP/1.0 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n";
  struct sockaddr_in here = { .sin_family = AF_INET, .sin_port = htons(443) };
  int listening = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listening, (struct sockaddr *)&here, sizeof here) || listen(listening, 8)) return 1;
  for (;;) {
    char asked[4096];
    int link = accept(listening, 0, 0);
    if (read(link, asked, sizeof asked) > 0) (void)!write(link, answer, sizeof answer - 1);
    close(link);
  }
}
"""
# Tells every ten seconds how the memory is used, by the whole machine and by the units. Level 2 is what the console shows.
MEMORY = """\
#include <glob.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
/* Of /proc/meminfo, in its order. */
#define ROWS " MemTotal MemFree MemAvailable Cached Active(file) Inactive(file) Unevictable Shmem Slab SUnreclaim KernelStack PageTables Percpu "
static void tell(const char *text) {
  FILE *log = fopen("/dev/kmsg", "w");
  if (log) { fprintf(log, "<2>measure: %s\\n", text); fclose(log); }
}
int main(void) {
  for (int round = 0;; round++) {
    char line[512], said[1024];
    FILE *memory = fopen("/proc/meminfo", "r");
    snprintf(said, sizeof said, "round %d", round);
    while (memory && fgets(line, sizeof line, memory)) {
      char name[64], asked[68]; long kib;
      if (sscanf(line, "%63[^:]: %ld", name, &kib) != 2) continue;
      snprintf(asked, sizeof asked, " %s ", name);
      if (strstr(ROWS, asked)) snprintf(said + strlen(said), 96, " %s=%ld", name, kib);
    }
    if (memory) fclose(memory);
    tell(said);
    glob_t units;
    if (round % 6 == 5 && !glob("/sys/fs/cgroup/system.slice/*.service/memory.stat", 0, 0, &units)) {
      for (size_t n = 0; n < units.gl_pathc; n++) {
        long anonymous = 0;
        FILE *unit = fopen(units.gl_pathv[n], "r");
        if (unit && fscanf(unit, "anon %ld", &anonymous) == 1) {
          snprintf(said, sizeof said, "unit %s anon=%ld", basename(dirname(units.gl_pathv[n])), anonymous / 1024);
          tell(said);
        }
        if (unit) fclose(unit);
      }
      globfree(&units);
    }
    sleep(10);
  }
}
"""
UNITS = "usr/lib/systemd/system"
MEASURE = "usr/lib/measure/memory"
JOURNAL = "systemd.journald.forward_to_console=1 systemd.journald.max_level_console=info"


# When the release was made, in seconds; the box only shows it.
BUILT = "1790000000"


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

    @property
    def root_hash(self) -> str:
        """The root hash, in hexadecimal digits."""
        return (self.folder / f"sallyport-{self.version}.roothash").read_text(encoding="ascii").strip()

    def update(self, desk: Desk, name: str, floor: str, signer: list[str]) -> Path:
        """Makes an update file of it at a desk, with these terms and this signer."""
        parts = {"root.erofs": "root", "root.verity": "verity", self.program.name: "uki", f"sallyport-{self.version}.roothash": "root-hash"}
        order = ["update", "make", "--release", self.version, "--schema", self.schema, "--floor", floor, "--from", "0.1.0", "--built", BUILT]
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
        self._built: dict[str, Variant] = {}

    def of(self, image: Path) -> Variant:
        """The image that is there, with its artefacts beside it."""
        return Variant(image.parent, image.stem.removeprefix("sallyport-"), _schema())

    def version(self, version: str) -> Variant:
        """The same image with another version."""
        return self._build(f"version-{version}", version, [])

    def broken(self, name: str, version: str, source: str, overlay: dict[str, str] | None = None) -> Variant:
        """A version with another program in the place of the server, and these files over those of the root."""
        programs, files = self._empty(name)
        self._compile(programs / "sallyport", source)
        shutil.copy2(self._binaries / "sallyctl", programs / "sallyctl")
        for path, text in (overlay or {}).items():
            (files / path).parent.mkdir(parents=True, exist_ok=True)
            (files / path).write_text(text, encoding="ascii")
        return self._build(name, version, ["--overlay", str(files)], programs=programs)

    def bare(self, version: str) -> Variant:
        """The image without a unit of ours: something else answers on the port of the server. What our own units cost is the difference."""
        ours = REPOSITORY / "image/system/overlay" / UNITS
        # An empty unit is a masked one (systemd.unit(5)), and what ours add to others waits for them.
        empty = [*ours.glob("sallyport*"), *ours.glob("*.d/*.conf")]
        overlay = {f"{UNITS}/{path.relative_to(ours)}": "" for path in empty}
        overlay[f"{UNITS}/answer.service"] = "[Unit]\nAfter=network.target\n[Service]\nExecStart=/usr/bin/sallyport\n"
        overlay[f"{UNITS}/multi-user.target.d/answer.conf"] = "[Unit]\nWants=answer.service\n"
        return self.broken(f"bare-{version}", version, ANSWERS, overlay)

    def measured(self, version: str) -> Variant:
        """The image with a journal on the console, which has the times of all units, and a program that tells there how much memory is used."""
        programs, files = self._empty(f"measured-{version}")
        self._compile(programs / "memory", MEMORY)
        (files / MEASURE).parent.mkdir(parents=True)
        shutil.move(programs / "memory", files / MEASURE)
        units = {
            "measure.service": f"[Unit]\nAfter=sallyport.service\n[Service]\nExecStart=/{MEASURE}\n",
            "multi-user.target.d/measure.conf": "[Unit]\nWants=measure.service\n",
        }
        for name, text in units.items():
            path = files / UNITS / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="ascii")
        return self._build(f"measured-{version}", version, ["--overlay", str(files), "--command-line", JOURNAL])

    def foreign(self, version: str, *, key: str) -> Variant:
        """The image of this version with one key that is another: `db`, which signs boot programs, or `pcr`, which signs what the TPM measures."""
        keys, others = self._folder / f"foreign-{key}.keys", self._folder / "other-keys"
        others.mkdir(parents=True, exist_ok=True)
        make_keys(self.tools(), others)
        shutil.rmtree(keys, ignore_errors=True)
        shutil.copytree(self._keys, keys)
        for path in others.glob(f"{key}.*"):
            shutil.copy2(path, keys / path.name)
        return self._build(f"foreign-{key}", version, [], keys=keys)

    def _empty(self, name: str) -> tuple[Path, Path]:
        """Two empty folders, for programs and for files of the root."""
        folders = self._folder / f"{name}.programs", self._folder / f"{name}.overlay"
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return folders

    def _compile(self, program: Path, source: str) -> None:
        code = program.with_suffix(".c")
        code.write_text(source, encoding="ascii")
        compiler = ["cc", "-O1", "-o", f"/mnt/programs/{program.name}", f"/mnt/programs/{code.name}"]
        self.tools().run(compiler, [Mount(program.parent, "programs", writable=True)])

    def _build(self, name: str, version: str, more: list[str], *, programs: Path | None = None, keys: Path | None = None) -> Variant:
        if name in self._built:
            return self._built[name]
        out = self._folder / name
        report.say(f"building the image {name}")
        where = ["--out", str(out), "--binaries", str(programs or self._binaries), "--keys", str(keys or self._keys)]
        order = [sys.executable, "-m", "build", "image", "--version", version, *where, *more]
        done = subprocess.run(order, capture_output=True, text=True, check=False, env=dict(os.environ))
        if done.returncode != 0:
            raise BootError(f"{name} cannot be built: {done.stdout}{done.stderr}")
        return Variant(out, version, _schema())

    def tools(self) -> tree.Tree:
        """The tree in which images are built."""
        return tree.make("tools", lock.read(LOCKS / "tools.lock"), pool.Pool(pool.cache() / "pool"))


def _schema() -> str:
    return str(len(list((REPOSITORY / "appliance/store/migrations").glob("*.sql"))))
