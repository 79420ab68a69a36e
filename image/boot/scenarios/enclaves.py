"""Two enclaves as units have them: a box each, a desk each, people with activation codes, and one stick that is carried between them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from build import report

from .. import sticks
from ..desk import Desk, found
from ..machine import Boot, BootError, Machine
from ..people import Person
from .bench import BOOT_S, Bench, switch_off, times, visit

PEOPLE = {"alpha.example": ("alice", "carol"), "bravo.example": ("bob",)}
CARDS, BUNDLES, OUT = ("SALLYPORT/CARDS", "SALLYPORT/BUNDLES", "SALLYPORT/OUT")


@dataclasses.dataclass
class Enclave:
    """A box that runs, and the desk of its officers."""

    bench: Bench
    machine: Machine
    desk: Desk
    boot: Boot

    @property
    def name(self) -> str:
        """Its server name."""
        return self.desk.enclave

    def person(self, name: str) -> Person:
        """Somebody who is on its roster, at a client that trusts the CA that came with the activation codes."""
        return Person(name, f"https://localhost:{self.machine.port}", self.desk.folder / "ca.pem")

    def code(self, name: str) -> str:
        """Somebody's activation code."""
        codes = json.loads((self.desk.folder / "codes.json").read_text(encoding="utf-8"))
        return next(str(code["code"]) for code in codes if code["user_id"] == f"@{name}:{self.name}")

    def visit(self, stick: Stick) -> str:
        """The stick is plugged in here, and pulled out when the console says so; returns what the box did, as it says on the stick."""
        stick.carry_to(self.machine.folder)
        visit(self.boot, stick.image)
        return sticks.result(self.bench.tools, stick.image)

    def take(self, stick: Stick, name: str, to: str) -> bytes:
        """Takes a file from a stick to the desk."""
        content = sticks.read(self.bench.tools, stick.image, name)
        (self.desk.folder / to).write_bytes(content)
        return content


class Stick:
    """The image of a stick. It is in one place at a time, as the real one."""

    def __init__(self, bench: Bench, folder: Path, files: Mapping[str, Path]) -> None:
        self._bench = bench
        self.image = folder / "carried.img"
        sticks.make(bench.tools, self.image, files)

    def carry_to(self, folder: Path) -> None:
        """Moves it."""
        self.image = self.image.rename(folder / self.image.name)

    def put(self, files: Mapping[str, Path]) -> None:
        """An officer adds files at the desk."""
        sticks.put(self._bench.tools, self.image, files)

    def bundles(self) -> list[str]:
        """The bundles on it."""
        return [name for name in sticks.names(self._bench.tools, self.image, BUNDLES) if name.endswith(".snb")]

    def remove(self, names: list[str]) -> None:
        """An officer removes files at the desk."""
        sticks.remove(self._bench.tools, self.image, names)


def paired(bench: Bench, name: str) -> tuple[Machine, Machine]:
    """Boxes of alpha and bravo, switched off, which are paired and know their people. They are made once in a run, and copied for each who asks."""
    bench.once("paired", lambda: _pair_boxes(bench))
    alpha, bravo = (bench.copy(f"paired-{enclave}", f"{name}-{enclave}") for enclave in PEOPLE)
    return alpha, bravo


def _pair_boxes(bench: Bench) -> None:
    alpha, bravo = (bench.box(f"paired-{enclave}", enclave) for enclave in PEOPLE)
    with alpha.boot() as first:
        here = begin(bench, alpha, "alpha.example", first)
        with bravo.boot() as second:
            pair(here, begin(bench, bravo, "bravo.example", second))
            switch_off(second)
        switch_off(first)


def begin(bench: Bench, machine: Machine, enclave: str, boot: Boot) -> Enclave:
    """Waits until a box answers."""
    times(boot, f"HTTPS of {enclave}", boot.wait_for_https(BOOT_S))
    return Enclave(bench, machine, bench.desk(machine, enclave), boot)


def pair(alpha: Enclave, bravo: Enclave) -> None:
    """Rosters in, codes and keys out; then the cards, which the officers approve at their desks, on one stick for both."""
    for enclave in (alpha, bravo):
        roster = enclave.desk.roster(1, PEOPLE[enclave.name])
        order = enclave.desk.order("card_request = true")
        stick = Stick(enclave.bench, enclave.machine.folder, {"SALLYPORT/ROSTER/people.snr": roster, f"{OUT}/card.order": order})
        said = enclave.visit(stick)
        enclave.take(stick, f"{OUT}/codes-1.json", "codes.json")
        enclave.take(stick, f"{OUT}/ca.pem", "ca.pem")
        shown = found(r"SHA-256 of card.request, to be brought on paper: ([0-9a-f]{64})", said)
        enclave.desk.card(enclave.take(stick, f"{OUT}/card.request", "card.request"), shown)
    approvals = {}
    for enclave, other in ((alpha, bravo), (bravo, alpha)):
        own, theirs = enclave.desk.folder / "own.snc", enclave.desk.folder / "theirs.snc"
        theirs.write_bytes((other.desk.folder / "own.snc").read_bytes())
        approvals[f"{CARDS}/{enclave.name}.snc"] = own
        approvals[f"{CARDS}/own-{enclave.name}.approval"] = enclave.desk.approve(["card", "/mnt/desk/own.snc"], "own.approval")
        pairing = ["peer", "/mnt/desk/theirs.snc", "--enclave", enclave.name, "--fingerprint", other.desk.fingerprint()]
        approvals[f"{CARDS}/peer-{enclave.name}.approval"] = enclave.desk.approve(pairing, "peer.approval")
    stick = Stick(alpha.bench, alpha.machine.folder, approvals)
    # A mark, so that the box writes what it did.
    stick.put({f"{OUT}/empty.order": alpha.desk.order("")})
    for enclave, other in ((alpha, bravo), (bravo, alpha)):
        said = enclave.visit(stick)
        if "REFUSED" in said or "is installed" not in said or f"paired with {other.name}" not in said:
            raise BootError(f"{enclave.name} is not paired: {said}")
        report.say(f"{enclave.name} is paired with {other.name}")


def export(sender: Enclave, to: str, stick: Stick) -> str:
    """A bundle gets onto the stick: refused at first, then approved by the officer for just its number. Returns its name there."""
    before = stick.bundles()
    ordered = f"{OUT}/{sender.name}.order"
    stick.put({ordered: sender.desk.order(f'export = ["{to}"]')})
    said = sender.visit(stick)
    if stick.bundles() != before:
        raise BootError(f"{sender.name} exported without an approval: {said}")
    incarnation = found(r"--incarnation (\S+)", said)
    number = found(r"--number (\d+)", said)
    consent = ["export", to, "--enclave", sender.name, "--incarnation", incarnation, "--number", number]
    approval = f"{OUT}/{sender.name}-{number}.approval"
    stick.put({approval: sender.desk.approve(consent, "export.approval")})
    said = sender.visit(stick)
    new = [name for name in stick.bundles() if name not in before]
    if len(new) != 1 or "REFUSED" in said:
        raise BootError(f"{sender.name} exported {new}: {said}")
    # It is done; the next visit here must not be taken for another order.
    stick.remove([ordered, approval])
    return new[0]


def carry(sender: Enclave, recipient: Enclave, stick: Stick) -> None:
    """A bundle goes from one box to the other, where an officer approves it as well."""
    bundle = f"{BUNDLES}/{export(sender, recipient.name, stick)}"
    recipient.take(stick, bundle, "come.snb")
    approval = f"{BUNDLES}/{recipient.name}.approval"
    stick.put({approval: recipient.desk.approve(["import", "/mnt/desk/come.snb"], "import.approval")})
    said = recipient.visit(stick)
    if "REFUSED" in said or "Imported bundle" not in said:
        raise BootError(f"{recipient.name} did not take the bundle: {said}")
    stick.remove([bundle, approval])
    report.say(f"a bundle went from {sender.name} to {recipient.name}")
