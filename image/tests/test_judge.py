"""What is left of a disk is judged as firmware and kernel do."""

from __future__ import annotations

import hashlib
import struct
import tempfile
import unittest
import uuid
import zlib
from pathlib import Path

from boot import judge
from boot.judge import SECTOR

SECTORS = 4096
LAST = SECTORS - 1
DATA, HEAD_BYTES = 64, 16384


def table(label: str) -> tuple[bytes, bytes, bytes]:
    """The entries of a table with one partition, and the heads of its first and its last copy."""
    entry = uuid.UUID(int=1).bytes_le + uuid.UUID(int=2).bytes_le + struct.pack("<QQQ", DATA, LAST - 40, 0)
    entries = (entry + label.encode("utf-16le")).ljust(128 * 128, b"\0")
    heads = []
    for at in (2, LAST - 32):
        head = bytearray(b"EFI PART".ljust(92, b"\0"))
        struct.pack_into("<QIII", head, 72, at, 128, 128, zlib.crc32(entries))
        struct.pack_into("<I", head, 16, zlib.crc32(head))
        heads.append(bytes(head))
    return entries, heads[0], heads[1]


def luks(magic: bytes) -> bytes:
    """One copy of an empty LUKS2 head."""
    head = bytearray(HEAD_BYTES)
    struct.pack_into(">6sHQ", head, 0, magic, 2, HEAD_BYTES)
    head[448:480] = hashlib.sha256(head).digest()
    return bytes(head)


class TestJudge(unittest.TestCase):
    """A small disk with a data partition."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.disk = Path(folder.name) / "disk"
        self.disk.write_bytes(bytes(SECTORS * SECTOR))
        entries, first, last = table("sallyport-data")
        self.put(1, first)
        self.put(2, entries)
        self.put(LAST - 32, entries)
        self.put(LAST, last)

    def put(self, sector: int, content: bytes) -> None:
        """Writes from a sector on."""
        with self.disk.open("r+b") as file:
            file.seek(sector * SECTOR)
            file.write(content)

    def test_either_copy_of_the_table_will_do(self) -> None:
        self.assertEqual(judge.table(self.disk)["sallyport-data"].start, DATA * SECTOR)
        self.put(2, b"torn")
        self.assertEqual(judge.table(self.disk)["sallyport-data"].id, uuid.UUID(int=2))
        self.put(LAST, b"torn")
        with self.assertRaises(judge.NoTable):
            judge.table(self.disk)

    def test_either_copy_of_the_data_partitions_head_will_do(self) -> None:
        self.assertEqual(judge.data_partition(self.disk), "unformatted")
        self.put(DATA, luks(b"LUKS\xba\xbe"))
        self.assertEqual(judge.data_partition(self.disk), "whole")
        self.put(DATA + 2, b"torn")
        self.assertEqual(judge.data_partition(self.disk), "unformatted")
        self.put(DATA + HEAD_BYTES // SECTOR, luks(b"SKUL\xba\xbe"))
        self.assertEqual(judge.data_partition(self.disk), "whole")

    def test_no_data_partition(self) -> None:
        entries, first, _ = table("other")
        self.put(1, first)
        self.put(2, entries)
        self.assertEqual(judge.data_partition(self.disk), "none")


if __name__ == "__main__":
    unittest.main()
