"""People talk: in one enclave, over restarts and a power cut, and between two that share nothing but a stick."""

from __future__ import annotations

from contextlib import ExitStack

from build import report

from ..machine import BootError
from ..people import Person
from . import enclaves
from .bench import Bench, switch_off
from .enclaves import BUNDLES, Enclave, Stick

ALICE, BOB, CAROL = "@alice:alpha.example", "@bob:bravo.example", "@carol:alpha.example"


def talk(bench: Bench) -> None:
    """Two users talk, encrypted; a restart and a power cut need nobody and lose nothing; an approved bundle comes out on a stick."""
    machine, _ = enclaves.paired(bench, "talk")
    said: list[tuple[str, str]] = []
    with ExitStack() as people:
        with machine.boot() as boot:
            alpha = enclaves.begin(bench, machine, "alpha.example", boot)
            alice, carol = (people.enter_context(alpha.person(name)) for name in ("alice", "carol"))
            room = meet(alpha, alice, carol)
            for speaker, body in ((alice, "The bridge at kilometre 12 is closed."), (carol, "Understood, we take the ford.")):
                tell(alice, carol, speaker, room, body, said)
            pause(alice, carol)
            switch_off(boot)
        with machine.boot() as boot:
            enclaves.begin(bench, machine, "alpha.example", boot)
            remember(alice, carol, room, said)
            report.say("after a restart in order the messages are there")
            tell(alice, carol, alice, room, "We set out at 0400.", said)
            # Nothing is waited for after the answer to the message: whatever was promised then must be on the disk.
            alice.say(room, "The radio stays off.")
            boot.cut_power()
            said.append((ALICE, "The radio stays off."))
            pause(alice, carol)
        with machine.boot() as boot:
            alpha = enclaves.begin(bench, machine, "alpha.example", boot)
            remember(alice, carol, room, said)
            report.say("after a power cut the messages are there")
            take_out(alpha, alice)
            switch_off(boot)


def meet(alpha: Enclave, alice: Person, carol: Person) -> str:
    """Two people of an enclave sign in and join a room."""
    for person in (alice, carol):
        person.activate(alpha.code(person.name))
    room = alice.create_room("Crossing", CAROL)
    carol.join(room)
    alice.wait("await_member", room=room, user=CAROL, membership="join")
    for person, other in ((alice, CAROL), (carol, ALICE)):
        person.wait("await_device", user=other)
    return room


def tell(alice: Person, carol: Person, speaker: Person, room: str, body: str, said: list[tuple[str, str]]) -> None:
    """Somebody says something, and the other one reads it."""
    sender, listener = (ALICE, carol) if speaker is alice else (CAROL, alice)
    speaker.say(room, body)
    listener.hear(room, body, sender)
    said.append((sender, body))


def pause(*people: Person) -> None:
    """The devices are closed."""
    for person in people:
        person.call("pause")


def remember(alice: Person, carol: Person, room: str, said: list[tuple[str, str]]) -> None:
    """The devices are opened again and read what the box has of the room."""
    for person in (alice, carol):
        person.call("resume")
        person.call("read_back", room=room)
        for sender, body in said:
            person.hear(room, body, sender)


def take_out(alpha: Enclave, alice: Person) -> None:
    """Alice writes to another enclave; the bundle is ordered, approved, exported, and opened at the desk as far as its envelope goes."""
    alice.create_room("For bravo", BOB)
    stick = Stick(alpha.bench, alpha.machine.folder, {})
    bundle = enclaves.export(alpha, "bravo.example", stick)
    alpha.take(stick, f"{BUNDLES}/{bundle}", "out.snb")
    seen = alpha.desk.sallyctl(["bundle", "inspect", "/mnt/desk/out.snb"])
    if "alpha.example" not in seen or "bravo.example" not in seen:
        raise BootError(f"the bundle is not from alpha for bravo: {seen}")
    report.say(f"{bundle} is on the stick: {' '.join(seen.split())}")


def two_boxes(bench: Bench) -> None:
    """Two machines are two enclaves: users read each other's encrypted messages, which one stick carried there and back."""
    first, second = enclaves.paired(bench, "two-boxes")
    with ExitStack() as running:
        alpha = enclaves.begin(bench, first, "alpha.example", running.enter_context(first.boot()))
        bravo = enclaves.begin(bench, second, "bravo.example", running.enter_context(second.boot()))
        alice, bob = (running.enter_context(enclave.person(name)) for enclave, name in ((alpha, "alice"), (bravo, "bob")))
        alice.activate(alpha.code("alice"))
        bob.activate(bravo.code("bob"))
        stick = Stick(bench, first.folder, {})
        # Public keys of people's devices come first: then the first message can be encrypted to them.
        enclaves.carry(bravo, alpha, stick)
        room = alice.create_room("Crossing", BOB)
        alice.wait("await_device", user=BOB)
        question, answer = "Is the ford open?", "It is. Bring the chains."
        alice.say(room, question)
        enclaves.carry(alpha, bravo, stick)
        bob.join(room)
        bob.hear(room, question, ALICE)
        bob.say(room, answer)
        enclaves.carry(bravo, alpha, stick)
        alice.hear(room, answer, BOB)
        report.say("alice read bob, and bob read alice")
        for boot in (alpha.boot, bravo.boot):
            switch_off(boot)
