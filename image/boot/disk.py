"""What is done to a machine's disk while it is off: other boot programs, flipped bits."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from pathlib import Path

from build.tree import Mount, Tree

from .machine import BootError

SECTOR = 512
PIECE = 1 << 20


def partition(disk: Path, label: str) -> tuple[int, int]:
    """Where a partition starts, and its size, in bytes (UEFI specification, section 5.3: GUID partition table)."""
    with disk.open("rb") as file:
        file.seek(SECTOR)
        header = file.read(SECTOR)
        (table,) = struct.unpack_from("<Q", header, 72)
        count, size = struct.unpack_from("<II", header, 80)
        file.seek(table * SECTOR)
        entries = file.read(count * size)
    for offset in range(0, len(entries), size):
        first, last = struct.unpack_from("<QQ", entries, offset + 32)
        name = entries[offset + 56 : offset + 128].decode("utf-16le").rstrip("\0")
        if name == label:
            return first * SECTOR, (last - first + 1) * SECTOR
    raise BootError(f"the disk has no partition {label}")


def flip(disk: Path, label: str, offsets: list[int]) -> None:
    """Flips one bit at each of these places of a partition."""
    start, size = partition(disk, label)
    with disk.open("r+b") as file:
        for offset in offsets:
            if offset >= size:
                raise BootError(f"{label} is not that large")
            file.seek(start + offset)
            byte = file.read(1)[0]
            file.seek(start + offset)
            file.write(bytes([byte ^ 1]))


def digest(disk: Path, label: str) -> str:
    """The hash of what a partition holds."""
    start, size = partition(disk, label)
    total = hashlib.sha256()
    with disk.open("rb") as file:
        file.seek(start)
        while size > 0 and (piece := file.read(min(size, PIECE))):
            total.update(piece)
            size -= len(piece)
    return total.hexdigest()


def boot_entries(tools: Tree, disk: Path) -> list[str]:
    """The names of the boot programs on the boot partition."""
    start, _ = partition(disk, "ESP")
    order = tools.command(["mdir", "-b", "-i", f"/mnt/disk@@{start}", "::EFI/Linux"], [Mount(disk, "disk")])
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootError(f"mdir: {done.stderr}")
    return sorted(line.rsplit("/", 1)[-1] for line in done.stdout.splitlines())


def replace_boot_program(tools: Tree, disk: Path, program: Path, name: str) -> None:
    """Puts another file in the place of one on the boot partition."""
    start, _ = partition(disk, "ESP")
    command = ["mcopy", "-o", "-i", f"/mnt/disk@@{start}", "/mnt/program", f"::{name}"]
    order = tools.command(command, [Mount(disk, "disk", writable=True), Mount(program, "program")])
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootError(f"mcopy: {done.stderr}")
