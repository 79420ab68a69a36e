"""Disks that tests make: a partition table as UEFI has it, both copies of it."""

from __future__ import annotations

import struct
import uuid
import zlib

SECTORS = 4096
LAST = SECTORS - 1
# The first sector of the partition, and the last one.
FIRST, END = 64, LAST - 40


def table(label: str) -> dict[int, bytes]:
    """A table with one partition: its entries, and the heads of its first and its last copy, by their sectors."""
    entry = uuid.UUID(int=1).bytes_le + uuid.UUID(int=2).bytes_le + struct.pack("<QQQ", FIRST, END, 0)
    entries = (entry + label.encode("utf-16le")).ljust(128 * 128, b"\0")
    written = {}
    for place, at in ((1, 2), (LAST, LAST - 32)):
        head = bytearray(b"EFI PART".ljust(92, b"\0"))
        struct.pack_into("<QIII", head, 72, at, 128, 128, zlib.crc32(entries))
        struct.pack_into("<I", head, 16, zlib.crc32(head))
        written |= {place: bytes(head), at: entries}
    return written
