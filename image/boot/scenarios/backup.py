"""A box is backed up to sticks and comes back on another machine; its settings are changed by sticks; sticks that are not as they should be."""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

from build import report

from .. import sticks
from ..desk import SOFTWARE
from ..machine import Boot, BootError
from ..matrix import Person
from . import enclaves
from .bench import BOOT_S, MOMENT_S, RECOVERY_KEY, Bench, confirm, switch_off, times, visit
from .enclaves import BUNDLES, CARDS, OUT, Enclave, Stick, found

CODE = r"\d{4} \d{4} \d{4} \d{4}"
CONFIG, PROVISION, BACKUP, ROSTER = ("SALLYPORT/CONFIG", "SALLYPORT/PROVISION", "SALLYPORT/BACKUP", "SALLYPORT/ROSTER")
# Reading, checking and putting into place, under emulation.
RESTORE_S = 600.0
# Slow enough that somebody can pull it out in the middle.
SLOW_BYTES_PER_S = 400_000
BELL = "\x07"
STROKES_WHEN_DONE = 2


def restore_stick(bench: Bench) -> None:
    """A box is backed up to a stick and lost; another machine with another TPM and token goes on from the stick, and a bundle leaves it."""
    alpha, _ = enclaves.paired(bench, "restore")
    with alpha.boot() as boot:
        lost = enclaves.begin(bench, alpha, "alpha.example", boot)
        people, room = talk(lost)
        take_recovery_key(lost)
        stick = back_up(lost, people, room)
        boot.cut_power()
    machine = bench.machine("restored")
    stick.carry_to(machine.folder)
    with machine.boot() as boot:
        boot.wait_for("not set up yet", BOOT_S)
        confirm(boot, boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1])
        restored = Enclave(bench, machine, lost.desk, boot)
        go_on(restored, stick)
        times(boot, "HTTPS of the restored box", boot.wait_for_https(RESTORE_S))
        for person in people:
            person.boot = boot
            if person.said(room) != ["first", "second"]:
                raise BootError(f"{person.name} reads {person.said(room)}")
        people[0].say(room, "back")
        new_card(restored)
        empty = Stick(bench, machine.folder, {f"{OUT}/empty.order": restored.desk.order("")})
        bundle = enclaves.export(restored, "bravo.example", empty)
        report.say(f"the new life has sent {bundle}")
        switch_off(boot)


def talk(box: Enclave) -> tuple[list[Person], str]:
    """Two people in a room."""
    alice, carol = Person(box.boot, "alice"), Person(box.boot, "carol")
    for person in (alice, carol):
        person.activate(box.code(person.name))
    room = alice.create_room()
    alice.invite(room, f"@carol:{box.name}")
    carol.join(room)
    alice.say(room, "first")
    return [alice, carol], room


def take_recovery_key(box: Enclave) -> None:
    """Document 2 names a recovery officer."""
    desk = box.desk
    desk.write("recovery.toml", 'kind = "software"\npath = "/mnt/desk/recovery.key"\n')
    made = desk.sallyctl(["ceremony", "recovery-key", "--enclave", box.name, "--token", "/mnt/desk/recovery.toml", SOFTWARE])
    key = found(r"recovery_keys = \[\"(\S+)\"\]", made)
    change(box, 2, {"provision_approvals = 1": f'provision_approvals = 1\nrecovery_keys = ["{key}"]'})


def document(box: Enclave, serial: int, changes: Mapping[str, str], name: str = "next") -> dict[str, Path]:
    """A document that follows the first, and the officer's approval, as they lie on a stick."""
    text = (box.desk.folder / "box.toml").read_text(encoding="utf-8").replace("serial = 1", f"serial = {serial}")
    for old, new in changes.items():
        if old not in text:
            raise BootError(f"the document has no {old}: {text}")
        text = text.replace(old, new)
    path, approval = box.desk.write(f"{name}.toml", text), box.desk.folder / f"{name}.approval"
    approval.unlink(missing_ok=True)
    signer = ["--token", "/mnt/desk/officer.toml", SOFTWARE]
    box.desk.sallyctl(["provision", "sign", f"/mnt/desk/{name}.toml", *signer, "--out", f"/mnt/desk/{name}.approval"])
    return {f"{name}.toml": path, f"{name}.approval": approval}


def change(box: Enclave, serial: int, changes: Mapping[str, str]) -> None:
    """A stick brings a later document, and the box starts again with it."""
    files = {f"{CONFIG}/{name}": path for name, path in document(box, serial, changes).items()}
    stick = Stick(box.bench, box.machine.folder, {**files, f"{OUT}/empty.order": box.desk.order("")})
    said = box.visit(stick)
    if f"document {serial} is in force now" not in said or "REFUSED" in said:
        raise BootError(f"document {serial} is not in force: {said}")
    report.say(f"document {serial} is in force")


def ordered(box: Enclave, text: str) -> dict[str, Path]:
    """An order and its approval, as they lie on a stick."""
    until = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=2)
    order = box.desk.order(f'{text}\nuntil = "{until}"')
    approval = box.desk.approve(["order", f"/mnt/desk/{order.name}"], "order.approval")
    return {f"{OUT}/box.order": order, f"{OUT}/order.approval": approval}


def back_up(box: Enclave, people: list[Person], room: str) -> Stick:
    """Two backups on one stick, the second with what is new; the logs go with the first. What is said later is lost."""
    box.boot.wait_for_https(BOOT_S)
    stick = Stick(box.bench, box.machine.folder, ordered(box, "backup = true\naudit = true\njournal = true"))
    said = box.visit(stick)
    if "backup 1 (full)" not in said or "read back" not in said:
        raise BootError(f"there is no backup: {said}")
    if sum(line.count(BELL) for _, line in box.boot.lines()) < STROKES_WHEN_DONE:
        raise BootError("the bell did not ring")
    box.take(stick, f"{OUT}/audit.jsonl", "audit.jsonl")
    box.desk.sallyctl(["audit", "verify", "--file", "/mnt/desk/audit.jsonl"])
    journals = [name for name in sticks.names(box.bench.tools, stick.image, OUT) if name.startswith("journal-")]
    first = sticks.read(box.bench.tools, stick.image, f"{OUT}/{journals[0]}") if journals else b""
    if not first.startswith(b"LPKSHHRH"):
        raise BootError(f"{journals} is no journal")
    people[1].say(room, "second")
    stick.remove([f"{OUT}/{name}" for name in (*journals, "audit.jsonl")])
    stick.put(ordered(box, "backup = true"))
    said = box.visit(stick)
    if "backup 2 (what is new)" not in said:
        raise BootError(f"there is no second backup: {said}")
    people[0].say(room, "lost")
    report.say(", ".join(sticks.names(box.bench.tools, stick.image, BACKUP)))
    return stick


def go_on(box: Enclave, stick: Stick) -> None:
    """The machine asks, the recovery officer's desk grants, and the machine goes on: its token is empty, so that it has other keys."""
    bench, boot, desk = box.bench, box.boot, box.desk
    stick.remove([f"{OUT}/{name}" for name in sticks.names(bench.tools, stick.image, OUT)])
    visit(boot, stick.image)
    request = boot.wait_for(f"code of its request: ({CODE})", MOMENT_S)[1]
    box.take(stick, f"{OUT}/restore.request", "restore.request")
    backups = sticks.names(bench.tools, stick.image, BACKUP)
    for name in backups:
        box.take(stick, f"{BACKUP}/{name}", name)
    (desk.folder / "restore.grant").unlink(missing_ok=True)
    asked = ["--request", "/mnt/desk/restore.request", "--code", request, "--fingerprint", desk.fingerprint()]
    signer = ["--token", "/mnt/desk/recovery.toml", SOFTWARE, "--out", "/mnt/desk/restore.grant"]
    said = desk.sallyctl(["backup", "grant", *(f"/mnt/desk/{name}" for name in backups), *asked, *signer])
    code = found(f"({CODE})", said)
    key = found(r"(recovery_keys = .+)", (desk.folder / "next.toml").read_text(encoding="utf-8"))
    files = document(box, 3, {"provision_approvals = 1": f"provision_approvals = 1\n{key}"}, "restored")
    stick.put({f"{PROVISION}/{name}": path for name, path in {**files, "restore.grant": desk.folder / "restore.grant"}.items()})
    before = len(boot.lines())
    boot.plug_in(stick.image, "stick")
    boot.wait_for("Type the code", BOOT_S, before)
    boot.type(code + "\n")
    boot.wait_for("The stick is done", BOOT_S, before)
    boot.pull_out("stick")
    boot.wait_for("This machine is a box again", RESTORE_S, before)
    boot.wait_for("by backup 2 and document 3", MOMENT_S, before)


def new_card(box: Enclave) -> None:
    """The enclave root signs a card for the new life, which is the notice of the restore."""
    stick = Stick(box.bench, box.machine.folder, {f"{OUT}/card.order": box.desk.order("card_request = true")})
    said = box.visit(stick)
    shown = found(r"SHA-256 of card.request, to be brought on paper: ([0-9a-f]{64})", said)
    box.take(stick, f"{OUT}/card.request", "card.request")
    (box.desk.folder / "own.snc").unlink()
    sign = ["ceremony", "sign-card", "/mnt/desk/card.request", "--request-hash", shown, "--name", box.name, "--serial", "3"]
    box.desk.sallyctl([*sign, "--token", "/mnt/desk/root.toml", SOFTWARE, "--out", "/mnt/desk/own.snc"])
    approval = box.desk.approve(["card", "/mnt/desk/own.snc"], "own.approval")
    stick = Stick(box.bench, box.machine.folder, {f"{CARDS}/own.snc": box.desk.folder / "own.snc", f"{CARDS}/own.approval": approval})
    stick.put({f"{OUT}/empty.order": box.desk.order("")})
    said = box.visit(stick)
    if "card 3 of this box is installed" not in said:
        raise BootError(f"the new card is not installed: {said}")


def config(bench: Bench) -> None:
    """Signed changes by stick: another address, then another name, which the certificate has; unsigned, old and foreign ones are refused in words."""
    machine = bench.box("config")
    with machine.boot() as boot:
        box = enclaves.begin(bench, machine, "alpha.example", boot)
        network = '\n[network]\naddress = "{}"\n\n[tls]'
        change(box, 2, {"\n[tls]": network.format("10.0.2.77/24")})
        boot.wait_for(r"network +10\.0\.2\.77\b", BOOT_S)
        named = {"\n[tls]": network.format("10.0.2.15/24"), '"localhost"': '"localhost", "chat.alpha.example"'}
        since = len(boot.lines())
        change(box, 3, named)
        boot.wait_for(r"network +10\.0\.2\.15\b", BOOT_S, since)
        served(boot, "chat.alpha.example")
        refused_changes(box)
        boot.wait_for_https(MOMENT_S)
        switch_off(boot)
    with machine.boot() as boot:
        boot.wait_for_https(BOOT_S)
        served(boot, "chat.alpha.example")


def served(boot: Boot, name: str) -> None:
    """Waits until the certificate that is served has a name."""
    deadline = time.monotonic() + BOOT_S
    while time.monotonic() < deadline:
        boot.wait_for_https(BOOT_S)
        served = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", boot.port)))
        if name.encode() in served:
            report.say(f"it answers as {name}")
            return
    raise BootError(f"the certificate has no {name}; see {boot.log}")


def refused_changes(box: Enclave) -> None:
    """Documents that nobody signed, that are not newer, that are another enclave's: each is named with its reason, and none is taken."""
    unsigned = document(box, 7, {}, "unsigned")
    old = document(box, 3, {'"localhost"': '"elsewhere"'}, "old")
    foreign = document(box, 8, {"alpha.example": "bravo.example"}, "foreign")
    files = {"unsigned.toml": unsigned["unsigned.toml"], **old, **foreign}
    stick = Stick(box.bench, box.machine.folder, {f"{CONFIG}/{name}": path for name, path in files.items()})
    stick.put({f"{OUT}/empty.order": box.desk.order("")})
    said = box.visit(stick)
    for name, why in [
        ("unsigned", "too few officers approved"),
        ("old", "the document has the serial 3, and 3 is in force"),
        ("foreign", "the document is for bravo.example, and this is the box of alpha.example"),
    ]:
        if not any(line.startswith(f"- REFUSED: CONFIG/{name}.toml") and why in line for line in said.splitlines()):
            raise BootError(f"{name} is not refused with {why!r}: {said}")


def odd_sticks(bench: Bench) -> None:
    """Sticks with exFAT and without a file system are read; one that is pulled out while it is read or written is told, and the next one works."""
    machine = bench.box("odd-sticks")
    with machine.boot() as boot:
        box = enclaves.begin(bench, machine, "alpha.example", boot)
        pulled_out(box)
        stick = Stick(bench, machine.folder, {f"{ROSTER}/1.snr": box.desk.roster(1, ["alice"]), f"{OUT}/empty.order": box.desk.order("")})
        if "roster 1 is imported" not in box.visit(stick):
            raise BootError("the next stick does not work")
        boot.wait_for("0 active, 1 not activated", MOMENT_S)
        image = machine.folder / "odd.img"
        sticks.make_raw(image, "ROSTER/2.snr", box.desk.roster(2, ["alice"]).read_bytes())
        shown(boot, image, "ROSTER/2.snr: roster 2 is imported")
        changed = document(box, 2, {'"localhost"': '"localhost", "chat.alpha.example"'})
        files = {f"{CONFIG}/a name of many words, {name}": path for name, path in changed.items()}
        sticks.make(bench.tools, image, files, exfat=True)
        shown(boot, image, "document 2 is in force now")
        served(boot, "chat.alpha.example")
        switch_off(boot)


def shown(boot: Boot, image: Path, what: str) -> None:
    """Plugs a stick in that the box may not write to; the console says what came of it."""
    since = len(boot.lines())
    visit(boot, image)
    boot.wait_for(what, MOMENT_S, since)
    report.say(what)


def pulled_out(box: Enclave) -> None:
    """A slow stick is pulled out while it is read, another one while it is written."""
    large = box.desk.folder / "large.snb"
    large.write_bytes(bytes(20 << 20))
    stick = Stick(box.bench, box.machine.folder, {f"{BUNDLES}/large.snb": large, f"{ROSTER}/1.snr": box.desk.roster(1, ["alice"])})
    pull_out_at(box.boot, stick.image, "The stick is being read", "Nothing of it was used")
    report.say("pulled out while it was read: told")
    stick = Stick(box.bench, box.machine.folder, ordered(box, "journal = true"))
    pull_out_at(box.boot, stick.image, "The stick is being written", "has no name there")
    report.say("pulled out while it was written: told")
    if any(name.startswith("journal") for name in sticks.names(box.bench.tools, stick.image, OUT)):
        raise BootError("half a journal has a name")


def pull_out_at(boot: Boot, image: Path, shown: str, consequence: str) -> None:
    """Plugs a slow stick in, and pulls it out when the console says this."""
    since = len(boot.lines())
    pace = {"qom-type": "throttle-group", "id": "pace", "limits": {"bps-total": SLOW_BYTES_PER_S}}
    boot.command("object-add", **pace)
    file = {"driver": "raw", "file": {"driver": "file", "filename": f"/mnt/vm/{image.name}"}}
    boot.command("blockdev-add", **{"driver": "throttle", "node-name": "slow", "throttle-group": "pace", "file": file})
    boot.command("device_add", driver="usb-storage", bus="usb.0", drive="slow", id="slow", removable=True)
    boot.wait_for(shown, BOOT_S, since)
    boot.pull_out("slow")
    boot.wait_for("The stick was pulled out too early|The stick could not be used", BOOT_S, since)
    boot.wait_for(f"{consequence}|could not be (read|written)", MOMENT_S, since)
    boot.command("object-del", id="pace")
