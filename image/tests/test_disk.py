"""Partitions are found by their labels, and only the bit that is meant is flipped."""

import tempfile
import unittest
import uuid
from pathlib import Path

from boot import disk
from boot.disk import SECTOR
from boot.machine import BootError

from .disks import END, FIRST, LAST, SECTORS, table


class Disks(unittest.TestCase):
    """A disk with one partition."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "disk"
        self.path.write_bytes(bytes(SECTORS * SECTOR))
        for sector, content in table("root-a").items():
            self.put(sector, content)

    def put(self, sector: int, content: bytes) -> None:
        """Writes from a sector on."""
        with self.path.open("r+b") as file:
            file.seek(sector * SECTOR)
            file.write(content)

    def test_found_by_label(self) -> None:
        size = (END - FIRST + 1) * SECTOR
        self.assertEqual(disk.partition(self.path, "root-a"), disk.Partition("root-a", uuid.UUID(int=2), FIRST * SECTOR, size))
        with self.assertRaisesRegex(BootError, "root-b"):
            disk.partition(self.path, "root-b")

    def test_either_copy_of_the_table_will_do(self) -> None:
        self.put(2, b"torn")
        self.assertEqual(disk.partition(self.path, "root-a").start, FIRST * SECTOR)
        self.put(LAST, b"torn")
        with self.assertRaises(disk.NoTable):
            disk.partition(self.path, "root-a")

    def test_one_bit(self) -> None:
        before = self.path.read_bytes()
        disk.flip(self.path, "root-a", [5])
        after = self.path.read_bytes()
        different = [index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        self.assertEqual(different, [FIRST * SECTOR + 5])
        with self.assertRaises(BootError):
            disk.flip(self.path, "root-a", [(END - FIRST + 1) * SECTOR])
