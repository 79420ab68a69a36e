"""The journal of a box, and its seals in the audit log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from build import report

from .. import sticks
from ..desk import Desk
from ..machine import BootError
from .backup import ordered
from .bench import BOOT_S, Bench, switch_off
from .enclaves import OUT, Enclave, Stick, begin

LOGS = "audit = true\njournal = true"
AUDIT = "audit.jsonl"
# Of the first entries of a start.
ENTRY, CHANGED = b"MESSAGE=Linux version", b"MESSAGE=Linux Version"


def journal(bench: Bench) -> None:
    """The journal is sealed in the audit log, over a power cut as well; at the desk a changed entry and a missing file are found."""
    machine = bench.box("journal")
    with machine.boot() as boot:
        box = begin(bench, machine, "alpha.example", boot)
        stick = Stick(bench, machine.folder, ordered(box, LOGS))
        before = wait_for_seals(box, stick, more_than=0)
        boot.cut_power()
    with machine.boot() as boot:
        box = begin(bench, machine, "alpha.example", boot)
        wait_for_seals(box, stick, more_than=before)
        folder = take(box, stick)
        switch_off(boot)
    desk = Desk(bench.variants.tools(), bench.sallyctl, machine.folder, box.name)
    said = verified(desk, folder)
    if "The journal is as it was sealed" not in said:
        raise BootError(f"the journal is not proven: {said}")
    for line in said.splitlines():
        report.say(line)
    refused(desk, folder, change, "are not what they were")
    refused(desk, folder, lambda files: files[0].unlink(), "entries were removed or added")


def wait_for_seals(box: Enclave, stick: Stick, more_than: int) -> int:
    """Has the box write both logs to the stick until the audit log has more seals than these; returns how many."""
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        before = [f"{OUT}/{name}" for name in written(box, stick)]
        if before:
            stick.remove(before)
        said = box.visit(stick)
        if AUDIT not in said or "REFUSED" in said:
            raise BootError(f"the logs are not on the stick: {said}")
        log = sticks.read(box.bench.tools, stick.image, f"{OUT}/{AUDIT}").decode()
        rows = [json.loads(line) for line in log.splitlines()]
        seals = [row for row in rows if row.get("action") == "journal.seal"]
        if len(seals) > more_than:
            report.say(f"{len(seals)} seals, of {sum(int(row['details']['entries']) for row in seals)} entries")
            return len(seals)
    raise BootError(f"the audit log has no more than {more_than} seals of the journal after {BOOT_S:.0f} s")


def written(box: Enclave, stick: Stick) -> list[str]:
    """What the box wrote to the stick."""
    names = sticks.names(box.bench.tools, stick.image, OUT)
    return [name for name in names if name == AUDIT or name.startswith("journal-")]


def take(box: Enclave, stick: Stick) -> Path:
    """Takes both logs to the desk; returns the folder with the files of the journal."""
    folder = box.desk.folder / "journal"
    folder.mkdir()
    for name in written(box, stick):
        box.take(stick, f"{OUT}/{name}", name if name == AUDIT else f"journal/{name}")
    return folder


def verified(desk: Desk, folder: Path) -> str:
    """Holds a journal against its seals at the desk; returns what `sallyctl` said."""
    return desk.sallyctl(["audit", "verify", "--file", f"/mnt/desk/{AUDIT}", "--journal", f"/mnt/desk/{folder.name}"])


def refused(desk: Desk, folder: Path, do: Callable[[list[Path]], object], why: str) -> None:
    """Does something to a copy of the journal, whose newest file is the first, which must be found."""
    copy = desk.folder / "changed"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    do(sorted(copy.iterdir()))
    try:
        said = verified(desk, copy)
    except BootError as error:
        said = str(error)
    if why not in said:
        raise BootError(f"nobody notices what was done to the journal: {said}")
    report.say(said)
    for path in copy.iterdir():
        path.unlink()
    copy.rmdir()


def change(files: list[Path]) -> None:
    """Changes a letter of the oldest entry of its kind."""
    for path in reversed(files):
        content = path.read_bytes()
        if ENTRY in content:
            path.write_bytes(content.replace(ENTRY, CHANGED, 1))
            return
    raise BootError("the journal does not tell of a kernel that starts")
