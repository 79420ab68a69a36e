"""A machine's disk while it is off: its partitions, its boot programs; bits are flipped and programs replaced."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

from build.tree import Mount, Tree

from .machine import BootError

SECTOR = 512
PIECE = 1 << 20
# Of the boot partition.
PROGRAMS = "EFI/Linux"


@dataclasses.dataclass(frozen=True)
class Partition:
    """A partition as a table has it."""

    label: str
    id: uuid.UUID
    start: int
    size: int


class NoTable(BootError):
    """Neither copy of the partition table is whole."""


def table(disk: Path) -> dict[str, Partition]:
    """The partitions by label, from the first copy of the table if it is whole, otherwise from the one at the end of the disk (UEFI, section 5.3)."""
    with disk.open("rb") as file:
        last = file.seek(0, 2) // SECTOR - 1
        for place in (1, last):
            file.seek(place * SECTOR)
            header = file.read(SECTOR)
            (crc,) = struct.unpack_from("<I", header, 16)
            if header[:8] != b"EFI PART" or crc != zlib.crc32(header[:16] + bytes(4) + header[20:92]):
                continue
            (first,) = struct.unpack_from("<Q", header, 72)
            count, size, entries_crc = struct.unpack_from("<III", header, 80)
            file.seek(first * SECTOR)
            entries = file.read(count * size)
            if zlib.crc32(entries) == entries_crc:
                return _partitions(entries, size)
    raise NoTable("neither copy of the partition table is whole")


def _partitions(entries: bytes, size: int) -> dict[str, Partition]:
    found = {}
    for offset in range(0, len(entries), size):
        if entries[offset : offset + 16] != bytes(16):
            first, last = struct.unpack_from("<QQ", entries, offset + 32)
            label = entries[offset + 56 : offset + 128].decode("utf-16le").rstrip("\0")
            owned = uuid.UUID(bytes_le=entries[offset + 16 : offset + 32])
            found[label] = Partition(label, owned, first * SECTOR, (last - first + 1) * SECTOR)
    return found


def partition(disk: Path, label: str) -> Partition:
    """The partition with this label."""
    found = table(disk).get(label)
    if found is None:
        raise BootError(f"the disk has no partition {label}")
    return found


def flip(disk: Path, label: str, offsets: list[int]) -> None:
    """Flips one bit at each of these places of a partition."""
    place = partition(disk, label)
    with disk.open("r+b") as file:
        for offset in offsets:
            if offset >= place.size:
                raise BootError(f"{label} is not that large")
            file.seek(place.start + offset)
            byte = file.read(1)[0]
            file.seek(place.start + offset)
            file.write(bytes([byte ^ 1]))


def digest(disk: Path, label: str) -> str:
    """The hash of what a partition holds."""
    place = partition(disk, label)
    total, size = hashlib.sha256(), place.size
    with disk.open("rb") as file:
        file.seek(place.start)
        while size > 0 and (piece := file.read(min(size, PIECE))):
            total.update(piece)
            size -= len(piece)
    return total.hexdigest()


def boot_entries(tools: Tree, disk: Path) -> list[str]:
    """The names of the boot programs on the boot partition."""
    listed = _mtools(tools, disk, ["mdir", "-b"], [f"::{PROGRAMS}"]).decode()
    return sorted(line.rsplit("/", 1)[-1] for line in listed.splitlines())


def boot_program(tools: Tree, disk: Path, name: str) -> bytes:
    """A boot program on the boot partition."""
    return _mtools(tools, disk, ["mtype"], [f"::{PROGRAMS}/{name}"])


def replace_boot_program(tools: Tree, disk: Path, program: Path, name: str) -> None:
    """Puts another file in the place of a boot program on the boot partition."""
    _mtools(tools, disk, ["mcopy", "-o"], ["/mnt/program", f"::{PROGRAMS}/{name}"], Mount(program, "program"))


def _mtools(tools: Tree, disk: Path, command: list[str], what: list[str], *more: Mount) -> bytes:
    esp = partition(disk, "ESP")
    order = tools.command([*command, "-i", f"/mnt/disk@@{esp.start}", *what], [Mount(disk, "disk", writable=bool(more)), *more])
    done = subprocess.run(order, capture_output=True, check=False)
    if done.returncode != 0:
        raise BootError(f"{command[0]}: {done.stderr.decode()}")
    return done.stdout
