"""A stick in software does what one of hardware does."""

import struct
import tempfile
import unittest
from pathlib import Path

from boot import gadget


def command(tag: int, wanted: int, code: bytes, *, inwards: bool) -> bytes:
    """A command block wrapper."""
    return struct.pack("<IIIBBB", 0x43425355, tag, wanted, 0x80 if inwards else 0, 0, len(code)) + code.ljust(16, b"\0")


class Disk(unittest.TestCase):
    """Bulk-only transport, as the host sees it."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.image = Path(folder.name) / "stick"
        self.image.write_bytes(bytes(64 * gadget.BLOCK))
        self.disk = gadget._Disk(self.image)

    def status(self) -> tuple[int, int, int]:
        signature, tag, rest, failed = struct.unpack("<IIIB", self.disk.give(512))
        self.assertEqual(signature, 0x53425355)
        return tag, rest, failed

    def test_what_is_written_is_read_back(self) -> None:
        content = bytes(range(256)) * 4
        self.disk.take(command(1, len(content), struct.pack(">BxIxHx", 0x2A, 3, 2), inwards=False))
        self.assertFalse(self.disk.has_something(), "the status comes after the data")
        self.disk.take(content[:512])
        self.disk.take(content[512:])
        self.assertEqual(self.status(), (1, 0, 0))
        self.assertEqual(self.image.read_bytes()[3 * 512 : 5 * 512], content)
        self.disk.take(command(2, len(content), struct.pack(">BxIxHx", 0x28, 3, 2), inwards=True))
        self.assertEqual(self.disk.give(512) + self.disk.give(512), content)
        self.assertEqual(self.status(), (2, 0, 0))

    def test_an_unknown_command_fails_with_a_status(self) -> None:
        self.disk.take(command(7, 36, b"\xa3", inwards=True))
        self.assertEqual(self.disk.give(512), b"")
        self.assertEqual(self.status(), (7, 36, 1))

    def test_the_size_is_told(self) -> None:
        self.disk.take(command(8, 8, b"\x25", inwards=True))
        self.assertEqual(struct.unpack(">II", self.disk.give(8)), (63, 512))
