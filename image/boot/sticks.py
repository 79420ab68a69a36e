"""Images of sticks: made before a machine sees them, read after it had them."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from build.tree import Mount, Tree

from .machine import BootError

STICK_MIB = 64


def make(tools: Tree, image: Path, files: Mapping[str, Path], *, label: str = "SALLYPORT", exfat: bool = False, writable: bool = False) -> None:
    """Makes the image of a stick with one file system over all of it, and files by their names there; `writable` lets the box write to it."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(STICK_MIB << 20)
    if exfat:
        _run(tools, ["mkfs.exfat", "-q", "-L", label, "/mnt/stick"], image, [])
        if files:
            raise BootError("files get onto an exFAT stick through the box only")
        return
    _run(tools, ["mkfs.vfat", "-F", "32", "-n", label, "/mnt/stick"], image, [])
    made: set[str] = set()

    def make_folder(folders: list[str]) -> None:
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            if folder not in made:
                _run(tools, ["mmd", "-i", "/mnt/stick", f"::{folder}"], image, [])
                made.add(folder)

    if writable:
        make_folder(["SALLYPORT", "OUT"])
    for name, source in files.items():
        make_folder(name.split("/")[:-1])
        _run(tools, ["mcopy", "-i", "/mnt/stick", "/mnt/file", f"::{name}"], image, [Mount(source, "file")])


def read(tools: Tree, image: Path, name: str) -> bytes:
    """The content of a file on a stick."""
    command = tools.command(["mtype", "-i", "/mnt/stick", f"::{name}"], [Mount(image, "stick")])
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise BootError(f"the stick has no {name}: {done.stderr.decode()}")
    return done.stdout


def _run(tools: Tree, command: list[str], image: Path, mounts: list[Mount]) -> None:
    order = tools.command(command, [Mount(image, "stick", writable=True), *mounts])
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootError(f"{command[0]}: {done.stdout}{done.stderr}")
