"""The power goes: while an update is written, and while a machine starts for the first time."""

from __future__ import annotations

import collections
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from build import report

from .. import judge, sticks
from ..machine import BootError, Hardware, Machine
from ..record import Point, Recording
from .bench import BOOT_S, MOMENT_S, RECOVERY_KEY, Bench, confirm, switch_off, times
from .updates import NEW, WRITING_S, Inhabited, inhabited, signed

POINTS = 200
BOOTS = 6


def update(bench: Bench) -> None:
    """The power goes at 200 points of an update, as the guest's writes reached the disk; 6 of them are started, with all that was acknowledged."""
    box = inhabited(bench, "power-cut-update")
    new = bench.variants.version(NEW)
    file = signed(bench, box, new, NEW)
    old = bench.variants.of(bench.image)
    before = _kept(box.machine)
    log = box.machine.folder / "writes.log"
    Recording.prepare(log)
    # How many requests the log had when so many messages were acknowledged.
    acknowledged: list[tuple[int, int]] = []

    def say() -> None:
        box.say(f"number {len(box.said)}")
        acknowledged.append((Recording.length(log), len(box.said)))

    with box.machine.boot(Hardware(log=log)) as boot:
        boot.wait_for_https(BOOT_S)
        box.check(boot)
        say()
        stick = box.machine.folder / "visit.img"
        sticks.make(bench.tools, stick, {f"SALLYPORT/UPDATE/{file.name}": file})
        boot.plug_in(stick, "visit")
        boot.wait_for("An update is being installed", WRITING_S)
        began = Recording.length(log)
        while boot.time_of("is written and is tried at the next start") is None:
            if boot.elapsed() > BOOT_S + WRITING_S:
                raise BootError(f"the update is not written after {boot.elapsed():.0f} s; see {boot.log}")
            say()
        say()
        switch_off(boot)
    recording = Recording(log)
    begin = recording.epoch_of(began)
    report.say(f"{sum(map(len, recording.epochs))} writes, {len(recording.epochs) - 1} flushes, {len(recording.epochs) - begin} of them from the update on")
    judged = judge.Judge(bench.tools, [old, new])
    outcomes = _judge(recording, before, recording.points(POINTS, 7, begin), judged.starts)
    if set(outcomes) != {"0.1.0", NEW}:
        raise BootError(f"the points leave {sorted(outcomes)} only")

    def start(machine: Machine, point: Point, version: str) -> None:
        least = max((count for length, count in acknowledged if recording.epoch_of(length) <= point.epoch), default=3)
        with machine.boot() as boot:
            at = boot.wait_for_https(2 * BOOT_S)
            boot.wait_for(f"SALLYPORT {version}", MOMENT_S)
            box.person.boot = boot
            found = box.person.said(box.room)
            if found != box.said[: len(found)] or len(found) < least:
                raise BootError(f"{least} messages were acknowledged before {point}, and {len(found)} are there")
            times(boot, f"cut after flush {point.epoch}: {len(found)} messages of {least} acknowledged, HTTPS of {version}", at)

    _start(box.machine, recording, before, outcomes, start)


def first(bench: Bench) -> None:
    """The power goes at 200 points of a machine's first start, as its writes reached the disk; 6 of them are started, and make the data partition or find it."""
    machine = bench.machine("power-cut-first")
    before = _kept(machine)
    log = machine.folder / "writes.log"
    Recording.prepare(log)
    with machine.boot(Hardware(log=log)) as boot:
        boot.wait_for("not set up yet", BOOT_S)
        key = boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1]
        confirm(boot, key)
        confirmed = Recording.length(log)
        switch_off(boot)
    recording = Recording(log)
    report.say(f"{sum(map(len, recording.epochs))} writes, {len(recording.epochs) - 1} flushes")
    judged = judge.Judge(bench.tools, [bench.variants.of(bench.image)])

    def there_is(disk: Path) -> str:
        judged.starts(disk)
        return judge.data_partition(disk)

    outcomes = _judge(recording, before, recording.points(POINTS, 11), there_is)

    def start(machine: Machine, point: Point, data: str) -> None:
        with machine.boot() as boot:
            boot.wait_for("not set up yet", BOOT_S)
            if point.epoch < recording.epoch_of(confirmed):
                # It is shown when the data partition could be opened with the TPM.
                confirm(boot, boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1])
            times(boot, f"cut after flush {point.epoch}, data partition {data}: console", boot.elapsed())
            switch_off(boot)

    _start(machine, recording, before, outcomes, start)


def _kept(machine: Machine) -> Path:
    """A copy of a machine's disk as it is now."""
    return _copy(machine.disk, machine.folder / "before.raw")


def _copy(disk: Path, to: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", disk, to], check=True)
    return to


def _judge(recording: Recording, before: Path, points: list[Point], what: Callable[[Path], str]) -> dict[str, list[Point]]:
    """What each point leaves, by what `what` says of it."""
    outcomes: dict[str, list[Point]] = collections.defaultdict(list)
    replayed = _copy(before, before.with_name("replayed.raw"))
    for point, disk in recording.replay(replayed, points):
        try:
            outcomes[what(disk)].append(point)
        except BootError as error:
            raise BootError(f"{point} of {len(recording.epochs)} epochs: {error}") from None
    replayed.unlink()
    report.say(f"{len(points)} points leave: " + ", ".join(f"{len(found)} times {outcome}" for outcome, found in sorted(outcomes.items())))
    return outcomes


def _start(
    original: Machine,
    recording: Recording,
    before: Path,
    outcomes: dict[str, list[Point]],
    start: Callable[[Machine, Point, str], None],
) -> None:
    """Starts machines whose power was cut at six points that are spread over the outcomes and over time."""
    each = -(-BOOTS // len(outcomes))
    chosen = {point: outcome for outcome, found in outcomes.items() for point in _spread(found, each)}
    replayed = _copy(before, before.with_name("replayed.raw"))
    for number, (point, disk) in enumerate(recording.replay(replayed, sorted(chosen, key=lambda point: point.epoch))):
        folder = original.folder.with_name(f"{original.folder.name}-{number}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in ("tpm", "variables.fd"):
            subprocess.run(["cp", "-a", original.folder / name, folder / name], check=True)
        machine = Machine(original.tools, original.keys, folder)
        _copy(disk, machine.disk)
        start(machine, point, chosen[point])
        machine.disk.unlink()
    replayed.unlink()


def _spread(points: list[Point], count: int) -> list[Point]:
    """So many of them, evenly over time, the first and the last among them."""
    most = len(points) - 1
    return list(dict.fromkeys(points[round(number * most / max(count - 1, 1))] for number in range(count)))
