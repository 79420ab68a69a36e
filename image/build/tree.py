"""Trees of tools: locked packages, unpacked, in which everything runs that decides a byte of an image.

Neither root nor a network is needed, and maintainer scripts do not run: a tree is files. Commands run in it as root of a user
namespace, without network, with the same paths, environment and umask whoever calls them from wherever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from . import lock, pool, report

# Raised when this file makes trees otherwise than before.
LAYOUT = "4"
PATHS = "/usr/sbin:/usr/bin:/sbin:/bin"
# Links that the alternatives system of Debian would make.
LINKS = {"usr/bin/awk": "mawk", "usr/bin/cc": "gcc"}
DEVICES = ("null", "zero", "full", "random", "urandom")

# Enters a tree: $1 the tree, $2 the mounts (one for each line: `ro|rw`, tab, from, tab, to), then the command.
ENTER = r"""
set -eu
umask 022
tree=$1 mounts=$2
shift 2
mount --bind "$tree" "$tree"
mount -o remount,bind,ro "$tree"
mount -t proc proc "$tree/proc"
mount -t tmpfs -o mode=755 tmpfs "$tree/dev"
for device in @DEVICES@; do : >"$tree/dev/$device"; mount --bind "/dev/$device" "$tree/dev/$device"; done
ln -s /proc/self/fd "$tree/dev/fd"
mkdir "$tree/dev/shm"
mount -t tmpfs -o mode=1777 tmpfs "$tree/tmp"
mount -t tmpfs -o mode=755 tmpfs "$tree/run"
mount -t tmpfs -o mode=755 tmpfs "$tree/mnt"
while IFS='	' read -r mode from to; do
  [ -n "$mode" ] || continue
  if [ -d "$from" ]; then mkdir -p "$tree$to"; else mkdir -p "$tree${to%/*}"; : >"$tree$to"; fi
  mount --rbind "$from" "$tree$to"
  [ "$mode" = rw ] || mount -o remount,bind,ro "$tree$to"
done <<EOF
$mounts
EOF
exec chroot "$tree" "$@"
""".replace("@DEVICES@", " ".join(DEVICES))


class CommandFailed(Exception):
    """A command in a tree ended with an error that it told itself."""


@dataclasses.dataclass(frozen=True)
class Mount:
    """A file or folder of this machine that a command in a tree sees, below `/mnt`."""

    source: Path
    name: str
    writable: bool = False

    @property
    def inside(self) -> str:
        """Its path in the tree."""
        return f"/mnt/{self.name}"

    def line(self) -> str:
        """As `ENTER` reads it."""
        return f"{'rw' if self.writable else 'ro'}\t{self.source.resolve()}\t{self.inside}"


@dataclasses.dataclass(frozen=True)
class Tree:
    """A tree that is there."""

    folder: Path

    def run(
        self,
        command: Sequence[str],
        mounts: Iterable[Mount] = (),
        environment: Mapping[str, str] | None = None,
        *,
        network: bool = False,
    ) -> None:
        """Runs a command to its end; its output is the caller's."""
        done = subprocess.run(self.command(command, mounts, environment, network=network), check=False)
        if done.returncode != 0:
            raise CommandFailed(f"{command[0]} in {self.folder.name} ended with {done.returncode}")

    def command(
        self,
        command: Sequence[str],
        mounts: Iterable[Mount] = (),
        environment: Mapping[str, str] | None = None,
        *,
        network: bool = False,
    ) -> list[str]:
        """What to start on this machine to run `command` in the tree. It ends with whoever started it."""
        variables = {"PATH": PATHS, "HOME": "/tmp", "LC_ALL": "C.UTF-8", "TZ": "UTC", **(environment or {})}
        return [
            *unshare(network=network),
            "sh",
            "-c",
            ENTER,
            "enter",
            str(self.folder),
            "\n".join(mount.line() for mount in mounts),
            "/usr/bin/env",
            "-i",
            *(f"{key}={value}" for key, value in sorted(variables.items())),
            *command,
        ]


def unshare(*, network: bool) -> list[str]:
    """Namespaces of its own, and the caller as their root."""
    spaces = ["--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--ipc", "--uts"]
    return ["unshare", *spaces, *([] if network else ["--net"])]


def make(name: str, locked: lock.Lock, packages: pool.Pool) -> Tree:
    """The tree of a lock: the one that was made before, or a new one."""
    wanted = hashlib.sha256((LAYOUT + locked.text()).encode()).hexdigest()[:16]
    folder = pool.cache() / "trees" / f"{name}-{wanted}"
    if hold(folder):
        return Tree(folder)
    packages.fetch(locked.packages)
    report.say(f"unpacking {len(locked.packages)} packages into {folder}")
    fresh = folder.with_suffix(f".{os.getpid()}")
    fresh.mkdir(parents=True)
    hold(fresh)
    unpack_all(locked, packages.path, fresh)
    for link, target in LINKS.items():
        if (fresh / link).parent.joinpath(target).exists() and not (fresh / link).exists():
            (fresh / link).symlink_to(target)
    for part in ("proc", "dev", "tmp", "run", "mnt"):
        (fresh / part).mkdir(exist_ok=True)
    (fresh / "etc/passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n", encoding="utf-8")
    (fresh / "etc/group").write_text("root:x:0:\n", encoding="utf-8")
    enter = [*unshare(network=False), "chroot", str(fresh)]
    subprocess.run([*enter, "/usr/bin/env", "-i", f"PATH={PATHS}", "ldconfig"], check=True)
    name_it(fresh, folder)
    remove_unused(path for path in folder.parent.glob(f"{name}-*") if path != folder)
    return Tree(folder)


def hold(folder: Path) -> bool:
    """Keeps a tree from being removed as long as this program runs; false if there is none."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        # Waits for whoever is about to remove it.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    return False


def name_it(fresh: Path, folder: Path) -> None:
    """Gives a tree that is complete its name, unless another program made the same meanwhile: then that one counts."""
    try:
        fresh.rename(folder)
    except OSError:
        if not hold(folder):
            raise
        shutil.rmtree(fresh)


def remove_unused(trees: Iterable[Path]) -> None:
    """Removes trees that no program works in."""
    for old in trees:
        # Gone, or in use.
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            descriptor = os.open(old, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                os.close(descriptor)


def unpack_all(locked: lock.Lock, place: Callable[[lock.Package], Path], folder: Path) -> None:
    """Unpacks the packages of a lock, of which `place` says where they are. The one that makes the folders of Debian comes first."""
    for package in sorted(locked.packages, key=lambda package: (package.name != "base-files", package)):
        unpack(place(package), folder)


def unpack(package: Path, folder: Path) -> None:
    """Unpacks the files of a .deb, owned by whoever unpacks them."""
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as reader:
        extract = ["tar", "-x", "-C", str(folder), "--no-same-owner", "-p", "--keep-directory-symlink"]
        subprocess.run(extract, stdin=reader.stdout, check=True)
    if reader.returncode != 0:
        raise CommandFailed(f"dpkg-deb cannot read {package}")
