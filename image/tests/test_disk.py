"""Partitions are found by their labels, and only the bit that is meant is flipped."""

import struct
import tempfile
import unittest
from pathlib import Path

from boot import disk
from boot.machine import BootError


class Disks(unittest.TestCase):
    """A disk with one partition, sectors 40 to 47."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "disk"
        content = bytearray(64 * disk.SECTOR)
        header = bytearray(b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 2, 128, 128))
        content[disk.SECTOR : disk.SECTOR + len(header)] = header
        entry = bytes(32) + struct.pack("<QQQ", 40, 47, 0) + "root-a".encode("utf-16le").ljust(72, b"\0")
        content[2 * disk.SECTOR : 2 * disk.SECTOR + len(entry)] = entry
        self.path.write_bytes(content)

    def test_found_by_label(self) -> None:
        self.assertEqual(disk.partition(self.path, "root-a"), (40 * 512, 8 * 512))
        with self.assertRaisesRegex(BootError, "root-b"):
            disk.partition(self.path, "root-b")

    def test_one_bit(self) -> None:
        before = self.path.read_bytes()
        disk.flip(self.path, "root-a", [5])
        after = self.path.read_bytes()
        different = [index for index, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
        self.assertEqual(different, [40 * 512 + 5])
        with self.assertRaises(BootError):
            disk.flip(self.path, "root-a", [8 * 512])
