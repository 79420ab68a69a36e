"""Images of sticks: made before a machine sees them, read after it had them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from build.tree import Mount, Tree

from .exfat import fill as fill_exfat
from .machine import BootError

STICK_MIB = 64
RAW_START = 1 << 20


def make(tools: Tree, image: Path, files: Mapping[str, Path], *, label: str = "SALLYPORT", exfat: bool = False, writable: bool = False) -> None:
    """Makes the image of a stick with one file system over all of it, and files by their names there; `writable` lets the box write to it."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(STICK_MIB << 20)
    if exfat:
        _run(tools, ["mkfs.exfat", "-L", label, "/mnt/stick"], image, [])
        if files:
            fill_exfat(image, {name: source.read_bytes() for name, source in files.items()})
        return
    _run(tools, ["mkfs.vfat", "-F", "32", "-n", label, "/mnt/stick"], image, [])
    put(tools, image, files)
    if writable:
        _folders(tools, image, ["SALLYPORT", "OUT"])


def make_raw(image: Path, name: str, content: bytes) -> None:
    """Makes the image of a stick without a file system: a label, and one file behind it (`provisioning/volume/src/lib.rs`)."""
    label = f"sallyport-raw/1\n{name}\n{len(content)}\n".encode()
    image.write_bytes(label.ljust(RAW_START, b"\0") + content.ljust(RAW_START, b"\0"))


def put(tools: Tree, image: Path, files: Mapping[str, Path]) -> None:
    """Adds files to a stick, by their names there, as an officer does at the desk."""
    for name, source in files.items():
        _folders(tools, image, name.split("/")[:-1])
        _run(tools, ["mcopy", "-o", "-i", "/mnt/stick", "/mnt/file", f"::{name}"], image, [Mount(source, "file")])


def remove(tools: Tree, image: Path, names: Iterable[str]) -> None:
    """Removes files from a stick."""
    _run(tools, ["mdel", "-i", "/mnt/stick", *(f"::{name}" for name in names)], image, [])


def names(tools: Tree, image: Path, folder: str) -> list[str]:
    """The files in a folder of a stick; none if the folder is not there."""
    return sorted(line.rsplit("/", 1)[1] for line in _list(tools, image, folder) or [] if not line.endswith("/"))


def result(tools: Tree, image: Path) -> str:
    """What the box said at its last visit, as a person reads it."""
    last = names(tools, image, "SALLYPORT/RESULT")[-1]
    return read(tools, image, f"SALLYPORT/RESULT/{last}").decode()


def read(tools: Tree, image: Path, name: str) -> bytes:
    """The content of a file on a stick."""
    command = tools.command(["mtype", "-i", "/mnt/stick", f"::{name}"], [Mount(image, "stick")])
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise BootError(f"the stick has no {name}: {done.stderr.decode()}")
    return done.stdout


def _folders(tools: Tree, image: Path, folders: list[str]) -> None:
    for depth in range(1, len(folders) + 1):
        folder = "/".join(folders[:depth])
        if _list(tools, image, folder) is None:
            _run(tools, ["mmd", "-i", "/mnt/stick", f"::{folder}"], image, [])


def _list(tools: Tree, image: Path, folder: str) -> list[str] | None:
    command = tools.command(["mdir", "-b", "-i", "/mnt/stick", f"::{folder}"], [Mount(image, "stick")])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else None


def _run(tools: Tree, command: list[str], image: Path, mounts: list[Mount]) -> None:
    order = tools.command(command, [Mount(image, "stick", writable=True), *mounts])
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootError(f"{command[0]}: {done.stdout}{done.stderr}")
