"""What a machine wrote to its disk, write by write and flush by flush, and what a power cut in between leaves.

QEMU's driver `blklogwrites` records in the format of the kernel's `dm-log-writes`: one sector for the log itself, then for each request one with
its head (place, length, kind), and the bytes that were written behind it.
"""

from __future__ import annotations

import dataclasses
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from .machine import BootError

SECTOR = 512
MAGIC = 0x6A736677736872
FLUSH, DISCARD = 1, 4
HEAD = struct.Struct("<QQQQ")
# The log is sparse; a guest that writes more has something to explain.
LOG_BYTES = 8 << 30


@dataclasses.dataclass(frozen=True)
class Write:
    """A run of sectors that was written; `at` is where their bytes are in the log, none if they were discarded."""

    sector: int
    sectors: int
    at: int | None


@dataclasses.dataclass(frozen=True)
class Point:
    """A power cut: after so many flushes, with chance's choice of what was written since."""

    epoch: int
    seed: int


class Recording:
    """The log of a machine's run."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.epochs: list[list[Write]] = [[]]
        self._read()

    @staticmethod
    def prepare(log: Path) -> None:
        """Makes the file that the log goes into."""
        log.unlink(missing_ok=True)
        with log.open("wb") as file:
            file.truncate(LOG_BYTES)

    @staticmethod
    def length(log: Path) -> int:
        """How many requests a log has by now."""
        with log.open("rb") as file:
            magic, _, requests, _ = struct.unpack("<QQQI", file.read(28))
        if magic != MAGIC:
            raise BootError(f"{log.name} is no log of writes")
        return int(requests)

    def epoch_of(self, length: int) -> int:
        """Of how many flushes this many requests tell."""
        return sum(1 for at in self._flushes if at < length)

    def points(self, count: int, seed: int, begin: int = 0) -> list[Point]:
        """So many random points of the run, in its order; those epochs in which nothing was written have none."""
        chance = random.Random(seed)
        written = [number for number, epoch in enumerate(self.epochs) if epoch and number >= begin]
        return sorted((Point(chance.choice(written), chance.getrandbits(32)) for _ in range(count)), key=lambda point: point.epoch)

    def replay(self, disk: Path, points: list[Point]) -> Iterator[tuple[Point, Path]]:
        """Gives, for each point in turn, the disk as the cut left it. It must be as it was before the run, and is written to."""
        done = 0
        with self._log.open("rb") as log, disk.open("r+b") as file:

            def content(write: Write, first: int, count: int) -> bytes:
                if write.at is None:
                    return bytes(count * SECTOR)
                log.seek(write.at + first * SECTOR)
                return log.read(count * SECTOR)

            for point in points:
                for epoch in self.epochs[done : point.epoch]:
                    for write in epoch:
                        file.seek(write.sector * SECTOR)
                        file.write(content(write, 0, write.sectors))
                done = max(done, point.epoch)
                chosen = self._chosen(point)
                before: list[tuple[int, bytes]] = []
                for write, number in chosen:
                    place = (write.sector + number) * SECTOR
                    file.seek(place)
                    before.append((place, file.read(SECTOR)))
                    file.seek(place)
                    file.write(content(write, number, 1))
                file.flush()
                yield point, disk
                for place, bytes_ in reversed(before):
                    file.seek(place)
                    file.write(bytes_)

    def _chosen(self, point: Point) -> list[tuple[Write, int]]:
        """The sectors that arrived of those that nothing had flushed, in the order in which they did."""
        chance = random.Random(point.seed)
        kept_of_8 = chance.randrange(9)
        loose = [(write, number) for write in self.epochs[point.epoch] for number in range(write.sectors)]
        loose = [sector for sector in loose if chance.randrange(8) < kept_of_8]
        chance.shuffle(loose)
        return loose

    def _read(self) -> None:
        requests = self.length(self._log)
        self._flushes: list[int] = []
        with self._log.open("rb") as file:
            place = SECTOR
            for request in range(requests):
                file.seek(place)
                sector, sectors, flags, _ = HEAD.unpack(file.read(HEAD.size))
                place += SECTOR
                if flags & FLUSH:
                    self._flushes.append(request)
                    self.epochs.append([])
                if sectors:
                    self.epochs[-1].append(Write(sector, sectors, None if flags & DISCARD else place))
                if not flags & DISCARD:
                    place += sectors * SECTOR
