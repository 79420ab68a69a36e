"""What would start from a disk: judged as firmware, boot loader and kernel do, without starting it."""

from __future__ import annotations

import hashlib
import re
import struct
import uuid
from pathlib import Path

from build.tree import Tree

from .disk import Partition, boot_entries, boot_program, table
from .machine import BootError
from .variants import Variant

ENTRY = re.compile(r"^sallyport_(\d+)\.(\d+)\.(\d+)(?:\+(\d+)(?:-(\d+))?)?\.efi$")
# LUKS2 (on-disk format 1.1.1): two copies of a head, the second at its own size.
LUKS = {b"LUKS\xba\xbe", b"SKUL\xba\xbe"}
LUKS_HEADS = [1 << bits for bits in range(14, 23)]


class Judge:
    """Knows the versions that may start."""

    def __init__(self, tools: Tree, variants: list[Variant]) -> None:
        self._tools = tools
        self._known = {variant.version: variant for variant in variants}
        self._programs = {variant.version: _digest(variant.program.read_bytes()) for variant in variants}

    def starts(self, disk: Path) -> str:
        """The version that starts: its program is whole, and its slot is, to the last byte. So is that of the first version, which must be there to fall back to."""
        partitions = table(disk)
        entries = self._entries(disk)
        if not entries:
            raise BootError("the boot loader finds no entry")
        for version in {min(entries)[1], next(iter(self._known))}:
            names = [name for _, found, name in entries if found == version]
            if not names:
                raise BootError(f"nothing starts version {version}")
            if _digest(boot_program(self._tools, disk, names[0])) != self._programs[version]:
                raise BootError(f"{names[0]} is not whole")
            self._slot(disk, partitions, self._known[version])
        return min(entries)[1]

    def _entries(self, disk: Path) -> list[tuple[tuple[bool, int, int, int], str, str]]:
        """Those that can be started, with what the boot loader sorts them by: exhausted ones last, newer versions first."""
        found = []
        for name in boot_entries(self._tools, disk):
            entry = ENTRY.match(name)
            if entry:
                major, minor, patch = (int(number) for number in entry.groups()[:3])
                found.append(((entry[4] == "0", -major, -minor, -patch), f"{major}.{minor}.{patch}", name))
        return found

    def _slot(self, disk: Path, partitions: dict[str, Partition], variant: Variant) -> None:
        for wanted, artefact in ((variant.root_hash[:32], "root.erofs"), (variant.root_hash[32:], "root.verity")):
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
