"""What is left of a disk is judged as firmware and kernel do."""

from __future__ import annotations

import hashlib
import struct
import tempfile
import unittest
from pathlib import Path

from boot import judge
from boot.disk import SECTOR

from .disks import FIRST, SECTORS, table

HEAD_BYTES = 16384


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
        self.put_table("sallyport-data")

    def put_table(self, label: str) -> None:
        """Writes a table with one partition."""
        for sector, content in table(label).items():
            self.put(sector, content)

    def put(self, sector: int, content: bytes) -> None:
        """Writes from a sector on."""
        with self.disk.open("r+b") as file:
            file.seek(sector * SECTOR)
            file.write(content)

    def test_either_copy_of_the_data_partitions_head_will_do(self) -> None:
        self.assertEqual(judge.data_partition(self.disk), "unformatted")
        self.put(FIRST, luks(b"LUKS\xba\xbe"))
        self.assertEqual(judge.data_partition(self.disk), "whole")
        self.put(FIRST + 2, b"torn")
        self.assertEqual(judge.data_partition(self.disk), "unformatted")
        self.put(FIRST + HEAD_BYTES // SECTOR, luks(b"SKUL\xba\xbe"))
        self.assertEqual(judge.data_partition(self.disk), "whole")

    def test_no_data_partition(self) -> None:
        self.put_table("other")
        self.assertEqual(judge.data_partition(self.disk), "none")


if __name__ == "__main__":
    unittest.main()
