"""A box is updated: a new version holds, is refused, falls back, rots."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from build import report

from .. import disk, sticks
from ..desk import Desk
from ..machine import KERNEL_STARTS, Boot, BootError, Hardware, Machine
from ..matrix import Person
from ..variants import CRASHES, HANGS, Variant
from .bench import BOOT_S, MOMENT_S, Bench, press_power_button, switch_off, times

NEW = "0.2.0"
# Writing a slot, reading it back and the kernel, under emulation.
WRITING_S = 600.0
# A server that ends again and again is given up after ten starts.
TRIAL_S = 600.0
# How often the boot partition of a machine that runs is looked at.
ENTRIES_POLL_S = 1.0
PANIC = "dm-verity device corrupted|Kernel panic"
BLOCK = 4096
# What a running guest has not read yet: the drivers of these cards are on no machine's way to its console.
CARDS: list[dict[str, str]] = [{"driver": "igb"}, {"driver": "e1000e"}, {"driver": "virtio-scsi-pci"}, {"driver": "nvme", "serial": "1"}]
# Bits of a slot that a start reads: a start does not read everything.
ROT = [place << 20 for place in range(1, 32)]


@dataclasses.dataclass
class Inhabited:
    """A box with an account, and a room in which something was said."""

    machine: Machine
    desk: Desk
    person: Person
    room: str
    said: list[str]

    def copy(self, bench: Bench, name: str) -> Inhabited:
        """The same box once more."""
        folder = bench.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        machine = Machine.copy(self.machine, folder)
        return dataclasses.replace(self, machine=machine, desk=bench.desk(machine), person=copy.copy(self.person), said=list(self.said))

    def check(self, boot: Boot) -> None:
        """What was said before is still there, and something more can be said."""
        self.person.boot = boot
        found = self.person.said(self.room)
        if found != self.said:
            raise BootError(f"{len(self.said)} messages were acknowledged, and {len(found)} are there: {found}")
        self.say(f"number {len(self.said)}")

    def say(self, text: str) -> None:
        """Says something that the box acknowledges."""
        self.person.say(self.room, text)
        self.said.append(text)


# By the folder of the machines of a run.
ORIGINALS: dict[Path, Inhabited] = {}


def inhabited(bench: Bench, name: str) -> Inhabited:
    """A provisioned box on which somebody has an account and has said something; switched off. It is made once in a run, and copied for each who asks."""
    made = ORIGINALS.get(bench.folder)
    if made is None:
        made = ORIGINALS[bench.folder] = _inhabit(bench, "inhabited")
    return made.copy(bench, name)


def _inhabit(bench: Bench, name: str) -> Inhabited:
    machine = bench.box(name)
    desk = bench.desk(machine)
    with machine.boot() as boot:
        boot.wait_for_https(BOOT_S)
        result = visit(bench, boot, {"SALLYPORT/ROSTER/1.snr": desk.roster(1, ["alice"])}, "roster 1 is imported")
        codes = json.loads(sticks.read(bench.tools, result, "SALLYPORT/OUT/codes-1.json"))
        person = Person(boot, "alice")
        person.activate(codes[0]["code"])
        box = Inhabited(machine, desk, person, person.create_room(), [])
        for number in range(3):
            box.say(f"number {number}")
        switch_off(boot)
    return box


def visit(bench: Bench, boot: Boot, files: dict[str, Path], says: str) -> Path:
    """Plugs a stick in that the box may write to, waits until its result says this, and pulls it out; returns its image."""
    image = boot.machine.folder / "visit.img"
    sticks.make(bench.tools, image, files, writable=True)
    since = len(boot.lines())
    boot.plug_in(image, "visit")
    boot.wait_for("safe_to_remove: true", WRITING_S, since)
    result = sticks.read(bench.tools, image, "SALLYPORT/RESULT/RESULT-001.txt").decode()
    if says not in result:
        raise BootError(f"the result does not say {says!r}: {result}")
    boot.pull_out("visit")
    # The next one must not be taken for it.
    boot.wait_for_screen("network", "The stick", MOMENT_S)
    return image


def install(bench: Bench, box: Inhabited, update: Path) -> None:
    """Has a box that is off write an update, and switches it off again."""
    with box.machine.boot() as boot:
        boot.wait_for_https(BOOT_S)
        visit(bench, boot, {f"SALLYPORT/UPDATE/{update.name}": update}, "is genuine; it is written to the slot that does not run")
        boot.wait_for("is written and is tried at the next start", WRITING_S)
        report.say(f"{update.name} written {boot.elapsed():.0f} s after power on")
        press_power_button(boot)


def signed(bench: Bench, box: Inhabited, variant: Variant, floor: str) -> Path:
    """The update file of a version, signed with the key that boxes believe."""
    return variant.update(box.desk, f"sallyport-{variant.version}.update", floor, ["--key", box.desk.lay(bench.keys / "update.key")])


def entries(bench: Bench, box: Inhabited, expected: list[str]) -> None:
    """Holds the boot partition of a box that is off against what should be there."""
    found = disk.boot_entries(bench.tools, box.machine.disk)
    if found != sorted(f"sallyport_{name}.efi" for name in expected):
        raise BootError(f"the boot partition has {found}, and should have {expected}")


def update(bench: Bench) -> None:
    """A stick brings the next version: it is written, tried, blessed; what was said before is there. Then four updates are refused."""
    box = inhabited(bench, "update")
    entries(bench, box, ["0.1.0"])
    new = bench.variants.version(NEW)
    install(bench, box, signed(bench, box, new, NEW))
    entries(bench, box, ["0.1.0", "0.2.0+3-0"])
    with box.machine.boot() as boot:
        times(boot, "HTTPS of the new version", boot.wait_for_https(BOOT_S))
        boot.wait_for(f"SALLYPORT {NEW}", MOMENT_S)
        boot.wait_for(f"Version {NEW} is installed", MOMENT_S)
        boot.wait_for(r"state +open", MOMENT_S)
        box.check(boot)
        switch_off(boot)
    entries(bench, box, ["0.1.0", "0.2.0+9-0"])
    refused(bench, box)


def refused(bench: Bench, box: Inhabited) -> None:
    """A box with the new version refuses what it should, in words, and writes nothing."""
    old = bench.variants.of(bench.image)
    later = bench.variants.version("0.3.0")
    genuine = signed(bench, box, later, "0.1.0")
    content = genuine.read_bytes()
    short, altered = box.desk.folder / "short.update", box.desk.folder / "altered.update"
    short.write_bytes(content[: len(content) // 2])
    place = len(content) // 3
    altered.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    strangers = later.update(box.desk, "strangers.update", "0.1.0", box.desk.release_key())
    cases = [
        (signed(bench, box, old, "0.1.0"), f"version 0.1.0 is older than {NEW}, the oldest that this box still takes"),
        (short, "it was cut short or changed"),
        (altered, "is not the one that was signed"),
        (strangers, "which is no release key"),
    ]
    labels = ["root-a", "root-a-verity", "root-b", "root-b-verity"]
    before = [disk.digest(box.machine.disk, label) for label in labels]
    with box.machine.boot() as boot:
        boot.wait_for_https(BOOT_S)
        for file, says in cases:
            since = len(boot.lines())
            visit(bench, boot, {f"SALLYPORT/UPDATE/{file.name}": file}, says)
            boot.wait_for("The update was NOT installed", WRITING_S, since)
            report.say(f"{file.name}: refused")
        switch_off(boot)
    if before != [disk.digest(box.machine.disk, label) for label in labels]:
        raise BootError("something was written to a slot")
    entries(bench, box, ["0.1.0", "0.2.0+9-0"])


def fall_back(bench: Bench) -> None:
    """A new version that crashes, one that hangs, one whose slot rots: each is started three times, then the old one is back with its database."""
    crashing(bench, inhabited(bench, "fall-back-crash"))
    hanging(bench, inhabited(bench, "fall-back-hang"))
    corrupted(bench, inhabited(bench, "fall-back-corrupt"))


def crashing(bench: Bench, box: Inhabited) -> None:
    """A new version that changes the database and then ends at once."""
    install(bench, box, signed(bench, box, bench.variants.broken("crashing", NEW, CRASHES), NEW))
    tries(bench, box, "This start is a trial of a new version")
    old_again(bench, box, "the database was taken back to what it was before")


def hanging(bench: Bench, box: Inhabited) -> None:
    """A new version that never says that it is ready. The timer is shortened: what is shown is what it does, not how long it waits."""
    timer = {"usr/lib/systemd/system/sallyport-trial.timer.d/90-short.conf": "[Timer]\nOnBootSec=\nOnBootSec=90s\n"}
    install(bench, box, signed(bench, box, bench.variants.broken("hanging", NEW, HANGS, timer), NEW))
    tries(bench, box, "This start is a trial of a new version")
    old_again(bench, box)


def corrupted(bench: Bench, box: Inhabited) -> None:
    """A new version whose slot rots after it was written."""
    install(bench, box, signed(bench, box, bench.variants.version(NEW), NEW))
    disk.flip(box.machine.disk, "root-b", ROT)
    tries(bench, box, PANIC)
    old_again(bench, box)


def tries(bench: Bench, box: Inhabited, says: str, of: int = 3) -> None:
    """Starts a box as often as the boot loader tries a version; each start ends by itself."""
    for number in range(1, of + 1):
        with box.machine.boot() as boot:
            boot.wait_for(says, TRIAL_S)
            boot.wait_for_end(BOOT_S)
            report.say(f"start {number} of {of} ended after {boot.elapsed():.0f} s")
        entries(bench, box, ["0.1.0", f"{NEW}+{of - number}-{number}"])


def old_again(bench: Bench, box: Inhabited, says: str = f"VERSION {NEW} DID NOT HOLD") -> None:
    """The old version starts by itself, says why, and has what was said before."""
    with box.machine.boot() as boot:
        times(boot, "HTTPS of the old version", boot.wait_for_https(BOOT_S))
        boot.wait_for("SALLYPORT 0.1.0", MOMENT_S)
        boot.wait_for(f"VERSION {NEW} DID NOT HOLD", MOMENT_S)
        boot.wait_for(says, MOMENT_S)
        box.check(boot)
        switch_off(boot)
    # Nothing is worth going back to: the old one's starts are not counted.
    entries(bench, box, ["0.1.0", f"{NEW}+0-3"])
    with box.machine.boot() as boot:
        boot.wait_for_https(BOOT_S)
        box.check(boot)


def rot(bench: Bench) -> None:
    """The slot of a running box rots, first its hash tree, then its root: panic; after nine starts that came to nothing the older version runs."""
    box = inhabited(bench, "rot")
    install(bench, box, signed(bench, box, bench.variants.version(NEW), NEW))
    blocks, of_tree = (disk.partition(box.machine.disk, label).size for label in ("root-b", "root-b-verity"))
    # All but what the next start needs to get that far: the superblocks, and the root of the tree.
    tree = [place + 100 for place in range(2 * BLOCK, of_tree, BLOCK)]
    root = [place + 100 for place in range(BLOCK, blocks, BLOCK)]
    with box.machine.boot() as boot:
        boot.wait_for_https(BOOT_S)
        box.check(boot)
        switch_off(boot)
    with box.machine.boot() as boot:
        # The whole tree fits into the kernel's memory: what was read once is not read again.
        boot.wait_for(KERNEL_STARTS.pattern, BOOT_S)
        panics(box, boot, "root-b-verity", tree)
    disk.flip(box.machine.disk, "root-b-verity", tree)
    with box.machine.boot() as boot:
        report.say("the tree is whole again")
        boot.wait_for_https(BOOT_S)
        boot.wait_for(f"SALLYPORT {NEW}", MOMENT_S)
        box.check(boot)
        switch_off(boot)
    slots = [word for number in range(len(CARDS)) for word in ("-device", f"pcie-root-port,id=slot{number},chassis={number + 1}")]
    with box.machine.boot(Hardware(extra=tuple(slots))) as boot:
        boot.wait_for_https(BOOT_S)
        until_counted_anew(bench, box, boot)

        def read_more() -> None:
            for number, card in enumerate(CARDS):
                boot.command("device_add", bus=f"slot{number}", **card)

        panics(box, boot, "root-b", root, read_more)
    entries(bench, box, ["0.1.0", f"{NEW}+9-0"])
    tries(bench, box, PANIC, of=9)
    with box.machine.boot() as boot:
        times(boot, "HTTPS of the older version", boot.wait_for_https(BOOT_S))
        boot.wait_for("SALLYPORT 0.1.0", MOMENT_S)
        boot.wait_for(f"VERSION {NEW} NO LONGER STARTS", MOMENT_S)
        box.check(boot)
        switch_off(boot)


def until_counted_anew(bench: Bench, box: Inhabited, boot: Boot) -> None:
    """Waits until a box that is up has given its version all its starts again."""
    wanted, deadline = f"sallyport_{NEW}+9-0.efi", boot.elapsed() + MOMENT_S
    while wanted not in disk.boot_entries(bench.tools, box.machine.disk):
        if boot.elapsed() > deadline:
            raise BootError(f"the boot partition has no {wanted} after {MOMENT_S:.0f} s")
        time.sleep(ENTRIES_POLL_S)


def panics(box: Inhabited, boot: Boot, label: str, places: list[int], read_more: Callable[[], None] = lambda: None) -> None:
    """Flips bits under a running guest, and waits for it to read them."""
    disk.flip(box.machine.disk, label, places)
    since = len(boot.lines())
    read_more()
    boot.wait_for(PANIC, BOOT_S, since)
    boot.wait_for_end(MOMENT_S)
    report.say(f"{len(places)} bits of {label} flipped while it ran: the kernel panicked")
