"""What would start from a disk: judged as firmware, boot loader and kernel do, without starting it."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

from build.tree import Mount, Tree

from .machine import BootError
from .variants import Variant

SECTOR = 512
ENTRY = re.compile(r"^sallyport_(\d+)\.(\d+)\.(\d+)(?:\+(\d+)(?:-(\d+))?)?\.efi$")
# LUKS2 (on-disk format 1.1.1): two copies of a head, the second at its own size.
LUKS = {b"LUKS\xba\xbe", b"SKUL\xba\xbe"}
LUKS_HEADS = [1 << bits for bits in range(14, 23)]


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


class Judge:
    """Knows the versions that may start."""

    def __init__(self, tools: Tree, variants: list[Variant]) -> None:
        self._tools = tools
        self._known = {variant.version: variant for variant in variants}
        self._programs = {variant.version: _digest(variant.program.read_bytes()) for variant in variants}

    def starts(self, disk: Path) -> str:
        """The version that starts: its program is whole, and its slot is, to the last byte. So is that of the first version, which must be there to fall back to."""
        partitions = table(disk)
        entries = self._entries(disk, partitions["ESP"])
        if not entries:
            raise BootError("the boot loader finds no entry")
        for version in {min(entries)[1], next(iter(self._known))}:
            names = [name for _, found, name in entries if found == version]
            if not names:
                raise BootError(f"nothing starts version {version}")
            if _digest(self._content(disk, partitions["ESP"], names[0])) != self._programs[version]:
                raise BootError(f"{names[0]} is not whole")
            self._slot(disk, partitions, self._known[version])
        return min(entries)[1]

    def _entries(self, disk: Path, esp: Partition) -> list[tuple[tuple[bool, int, int, int], str, str]]:
        """Those that can be started, with what the boot loader sorts them by: exhausted ones last, newer versions first."""
        listed = self._mtools(["mdir", "-b"], disk, esp, "::EFI/Linux").decode()
        found = []
        for name in (line.rsplit("/", 1)[-1] for line in listed.splitlines()):
            entry = ENTRY.match(name)
            if entry:
                major, minor, patch = (int(number) for number in entry.groups()[:3])
                found.append(((entry[4] == "0", -major, -minor, -patch), f"{major}.{minor}.{patch}", name))
        return found

    def _content(self, disk: Path, esp: Partition, name: str) -> bytes:
        return self._mtools(["mtype"], disk, esp, f"::EFI/Linux/{name}")

    def _mtools(self, command: list[str], disk: Path, esp: Partition, name: str) -> bytes:
        order = self._tools.command([*command, "-i", f"/mnt/disk@@{esp.start}", name], [Mount(disk, "disk")])
        done = subprocess.run(order, capture_output=True, check=False)
        if done.returncode != 0:
            raise BootError(f"{command[0]}: {done.stderr.decode()}")
        return done.stdout

    def _slot(self, disk: Path, partitions: dict[str, Partition], variant: Variant) -> None:
        root_hash = (variant.folder / f"sallyport-{variant.version}.roothash").read_text(encoding="ascii").strip()
        for wanted, artefact in ((root_hash[:32], "root.erofs"), (root_hash[32:], "root.verity")):
            place = next((found for found in partitions.values() if found.id == uuid.UUID(wanted)), None)
            if place is None:
                raise BootError(f"no partition has the id that the kernel of {variant.version} looks for")
            content = (variant.folder / artefact).read_bytes()
            with disk.open("rb") as file:
                file.seek(place.start)
                if file.read(len(content)) != content:
                    raise BootError(f"{place.label} is not whole")


def data_partition(disk: Path) -> str:
    """What there is of the data partition: `none`, `unformatted`, or `whole`, a LUKS2 head of which one copy is good."""
    place = table(disk).get("sallyport-data")
    if place is None:
        return "none"
    with disk.open("rb") as file:
        for offset in (0, *LUKS_HEADS):
            file.seek(place.start + offset)
            head = file.read(4096)
            if head[:6] not in LUKS:
                continue
            (size,) = struct.unpack_from(">Q", head, 8)
            if not 4096 < size <= LUKS_HEADS[-1]:
                continue
            file.seek(place.start + offset)
            whole = file.read(size)
            if hashlib.sha256(whole[:448] + bytes(64) + whole[512:]).digest() == whole[448:480]:
                return "whole"
    return "unformatted"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
