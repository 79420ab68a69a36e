"""Tests of what a power cut leaves of a recorded run."""

from __future__ import annotations

import struct
import tempfile
import unittest
from pathlib import Path

from boot.record import DISCARD, FLUSH, HEAD, MAGIC, SECTOR, Point, Recording, Write


def log_of(requests: list[tuple[int, bytes, int]]) -> bytes:
    """A log: places, bytes and kinds."""
    log = struct.pack("<QQQI", MAGIC, 1, len(requests), SECTOR).ljust(SECTOR, b"\0")
    for sector, content, flags in requests:
        log += HEAD.pack(sector, len(content) // SECTOR, flags, 0).ljust(SECTOR, b"\0")
        log += b"" if flags & DISCARD else content
    return log


def sector(letter: str) -> bytes:
    """A sector of one letter."""
    return letter.encode() * SECTOR


class TestRecord(unittest.TestCase):
    """A disk of eight sectors."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.disk, self.log = Path(folder.name) / "disk", Path(folder.name) / "log"
        self.disk.write_bytes(b"".join(map(sector, "abcdefgh")))

    def recording(self) -> Recording:
        """Two sectors, a flush, one of them again and another, a flush, one is discarded."""
        requests = [
            (0, sector("A") + sector("B"), 0),
            (0, b"", FLUSH),
            (1, sector("1"), 0),
            (5, sector("5"), 0),
            (0, b"", FLUSH),
            (7, sector("?"), DISCARD),
        ]
        self.log.write_bytes(log_of(requests))
        return Recording(self.log)

    def shown(self) -> str:
        """The first letter of each sector."""
        content = self.disk.read_bytes()
        return "".join(chr(content[place] or ord("-")) for place in range(0, len(content), SECTOR))

    def test_a_log_is_read_in_epochs(self) -> None:
        recording = self.recording()
        self.assertEqual([len(epoch) for epoch in recording.epochs], [1, 2, 1])
        self.assertEqual(recording.epochs[2], [Write(7, 1, None)])
        self.assertEqual(Recording.length(self.log), 6)
        # A message that was acknowledged when the log had so many requests is safe from that epoch on.
        self.assertEqual([recording.epoch_of(length) for length in range(7)], [0, 0, 1, 1, 1, 2, 2])

    def test_what_was_flushed_is_there_and_of_the_rest_anything(self) -> None:
        recording = self.recording()
        seen: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}
        points = [Point(epoch, seed) for epoch in range(3) for seed in range(64)]
        for point, _ in recording.replay(self.disk, points):
            seen[point.epoch].add(self.shown())
        self.assertEqual(seen[0], {"abcdefgh", "Abcdefgh", "aBcdefgh", "ABcdefgh"})
        self.assertEqual(seen[1], {"ABcdefgh", "A1cdefgh", "ABcde5gh", "A1cde5gh"})
        self.assertEqual(seen[2], {"A1cde5gh", "A1cde5g-"})

    def test_points_are_the_same_in_every_run(self) -> None:
        recording = self.recording()
        self.assertEqual(recording.points(20, 3), recording.points(20, 3))
        self.assertEqual({point.epoch for point in recording.points(20, 3, 1)}, {1, 2})


if __name__ == "__main__":
    unittest.main()
