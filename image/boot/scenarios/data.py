"""The data partition: who can open it, when the machine is not the one that it was made on, and how it ends."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import shutil
import uuid

from build import lock, pool, report, tree, variables
from build.__main__ import LOCKS

from .. import disk, keys, luks, sticks
from ..machine import KERNEL_STARTS, Boot, BootError, Hardware, Machine
from .bench import BOOT_S, MOMENT_S, RECOVERY_KEY, Bench, confirm, recovery_key, switch_off, times

# A machine that is not the one of the others.
ANOTHER = Hardware(uuid="22222222-3333-4444-8555-666666666666")
# Random bytes that are alike are the same; whole sectors of zeros are everywhere.
PIECE_BYTES = 512
# How long a key is up before it is pressed again.
MENU_POLL_S = 0.3
WITHOUT_TPM = Hardware(tpm=False)
LOCKED = "Passphrase .what you type"
PASSPHRASE = "umbrella-copper 9 violins"


def moved(bench: Bench) -> None:
    """The disk of a box is put into another machine: its data does not open there without the recovery key; with it, it is sealed to that machine."""
    box = bench.box("moved-from")
    other = bench.machine("moved-to")
    box.disk.replace(other.disk)
    asks_and_opens(other, recovery_key(box), ANOTHER)


def changed_keys(bench: Bench) -> None:
    """A further certificate in db, an entry in dbx: the TPM keeps the key each time, until somebody types the recovery key."""
    box = bench.box("changed-keys")
    keys.certificate(bench.tools, box.folder / "stranger.crt")
    revoked = hashlib.sha256(b"some boot program").digest()
    keys.revocation(bench.tools, bench.keys, revoked, box.folder / "dbx.auth")
    for what, change in (
        ("db", ["--add-db", str(uuid.uuid4()), "/mnt/vm/stranger.crt"]),
        ("dbx", ["--set-dbx", "/mnt/vm/dbx.auth"]),
    ):
        report.say(f"{what} is changed")
        box.change_variables(*change)
        asks_and_opens(box, recovery_key(box))


def secure_boot_off(bench: Bench) -> None:
    """Secure Boot is switched off: the data does not open. With it on again, it does so by itself."""
    box = bench.box("secure-boot-off")
    box.fresh_variables(secure_boot=False)
    with box.boot() as boot:
        refuses(boot)
        boot.cut_power()
    box.fresh_variables()
    opens(box)


def asks_and_opens(box: Machine, key: str, hardware: Hardware | None = None) -> None:
    """The box does not open its data and says so; a wrong key is refused, the right one seals the data to the machine as it is now."""
    with box.boot(hardware) as boot:
        refuses(boot)
        boot.type(key.replace(key[0], "c" if key[0] != "c" else "b", 1) + "\n")
        boot.wait_for("did not open it", MOMENT_S)
        boot.type(key + "\n")
        boot.wait_for_end(BOOT_S)
    opens(box, hardware)


def refuses(boot: Boot) -> None:
    """The data stays closed, and the console says what to do."""
    boot.wait_for("CANNOT BE OPENED", BOOT_S)
    boot.wait_for("Recovery key, with its dashes", MOMENT_S)
    if boot.time_of("enclave +alpha"):
        raise BootError("the box came up although its data was to stay closed")


def opens(box: Machine, hardware: Hardware | None = None) -> None:
    """The box comes up by itself, as the enclave that it was."""
    with box.boot(hardware) as boot:
        times(boot, "HTTPS", boot.wait_for_https(BOOT_S))
        boot.wait_for("enclave +alpha", MOMENT_S)
        switch_off(boot)


def no_tpm(bench: Bench) -> None:
    """A machine without a TPM: somebody chooses a passphrase, and each start asks for it; the recovery key, on a stick, opens in its place."""
    machine = bench.machine("no-tpm")
    with machine.boot(WITHOUT_TPM) as boot:
        boot.wait_for("THIS MACHINE HAS NO TPM", BOOT_S)
        for number, (typed, said) in enumerate((("too short", "9 characters"), ("a" * 20, "1 different")), 1):
            answer(boot, "New passphrase", typed, f"Try {number}: It has {said}")
        answer(boot, "New passphrase", PASSPHRASE, "The same once more")
        boot.type(PASSPHRASE + "\n")
        key = boot.wait_for(RECOVERY_KEY.pattern, BOOT_S)[1]
        boot.wait_for("not set up yet", BOOT_S)
        times(boot, "console", boot.elapsed())
        confirm(boot, key)
        switch_off(boot)
        shows_nowhere(boot, PASSPHRASE)
    with machine.boot(WITHOUT_TPM) as boot:
        for number in range(1, 4):
            answer(boot, LOCKED, f"not the passphrase {number}", f"Try {number}: That did not open it")
        boot.wait_for("next try is possible in 10 seconds", MOMENT_S)
        answer(boot, LOCKED, PASSPHRASE, "The box starts|SALLYPORT")
        boot.wait_for("not set up yet", BOOT_S)
        times(boot, "console", boot.elapsed())
        switch_off(boot)
    with machine.boot(WITHOUT_TPM) as boot:
        boot.wait_for(LOCKED, BOOT_S)
        stick_opens(bench, boot, key)
        boot.wait_for("not set up yet", BOOT_S)
        switch_off(boot)


def recovery_stick(bench: Bench) -> None:
    """A box whose TPM was exchanged: a stranger's stick changes nothing, one with the recovery key opens the data once somebody presses Enter."""
    box = bench.box("recovery-stick")
    box.fresh_tpm()
    with box.boot() as boot:
        refuses(boot)
        strangers = box.folder / "stranger.img"
        (box.folder / "junk").write_bytes(b"\0" * 4096)
        sticks.make(bench.tools, strangers, {"SALLYPORT/RECOVERY/recovery.key": box.folder / "junk"})
        boot.plug_in(strangers, "stranger")
        boot.wait_for("It brings no recovery key", MOMENT_S)
        boot.pull_out("stranger")
        stick_opens(bench, boot, recovery_key(box))
        boot.wait_for_end(BOOT_S)
    opens(box)


def stick_opens(bench: Bench, boot: Boot, key: str) -> None:
    """A stick with the recovery key is plugged in, and somebody presses Enter."""
    (boot.machine.folder / "key.txt").write_text(key.upper() + "\r\n", encoding="ascii")
    image = boot.machine.folder / "key.img"
    sticks.make(bench.tools, image, {"SALLYPORT/RECOVERY/RECOVERY.KEY": boot.machine.folder / "key.txt"})
    boot.plug_in(image, "key")
    boot.wait_for("press Enter to try it", MOMENT_S)
    boot.type("\n")


def answer(boot: Boot, question: str, text: str, then: str) -> None:
    """Waits for a question in what the console said since the last one, answers it, and waits for what the console says to that."""
    boot.wait_for(question, BOOT_S, since=boot.seen)
    boot.type(text + "\n")
    boot.wait_for(then, BOOT_S, since=boot.seen)
    boot.seen = len(boot.lines())


def shows_nowhere(boot: Boot, text: str) -> None:
    """What was typed in secret stands nowhere on the console."""
    if boot.time_of(text):
        raise BootError("the console shows what somebody typed in secret")


def factory_reset(bench: Bench) -> None:
    """Somebody chooses 'Factory reset' in the boot menu: what was on the disk opens by no key any more, and the box can be provisioned again."""
    box = bench.box("factory-reset")
    before = Before(bench, box)
    with box.boot() as boot:
        boot.wait_for("BdsDxe: starting", BOOT_S)
        choose(boot, "Factory reset")
        boot.wait_for("FACTORY RESET: EVERYTHING", BOOT_S)
        boot.wait_for("Type ERASE to destroy it", MOMENT_S)
        boot.type("ERASE\n")
        boot.wait_for_end(BOOT_S)
    before.is_destroyed()
    for name in ("officer.key", "box.toml", "box.approval"):
        (box.folder / name).unlink()
    new = bench.provision(box)
    if new == before.key:
        raise BootError("the new data has the recovery key of the old")
    before.opens_nothing()


def factory_reset_stick(bench: Bench) -> None:
    """A stick brings an order for a factory reset that an officer approved; nothing happens until somebody types the word."""
    box = bench.box("factory-reset-stick")
    before = Before(bench, box)
    until = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=2)
    order = box.folder / "reset.order"
    order.write_text(f'enclave = "alpha.example"\nfactory_reset = true\nuntil = "{until}"\n', encoding="ascii")
    desk = bench.desk(box)
    token = ["--token", "/mnt/desk/officer.toml", "--allow-software-keys"]
    unapproved, approved = box.folder / "unapproved.img", box.folder / "approved.img"
    sticks.make(bench.tools, unapproved, {"SALLYPORT/OUT/reset.order": order})
    desk.sallyctl(["approve", "order", "/mnt/desk/reset.order", *token, "--out", "/mnt/desk/reset.approval"])
    files = {"SALLYPORT/OUT/reset.order": order, "SALLYPORT/OUT/reset.approval": box.folder / "reset.approval"}
    sticks.make(bench.tools, approved, files)
    with box.boot() as boot:
        boot.wait_for_https(BOOT_S)
        boot.plug_in(unapproved, "unapproved")
        boot.wait_for("REFUSED: OUT/reset.order", BOOT_S)
        boot.pull_out("unapproved")
        boot.plug_in(approved, "approved")
        boot.wait_for("Type ERASE to destroy it", BOOT_S)
        boot.type("ERASE\n")
        boot.wait_for_end(BOOT_S)
    before.is_destroyed()
    with box.boot() as boot:
        boot.wait_for("not set up yet", BOOT_S)
    before.opens_nothing()


def enrol(bench: Bench) -> None:
    """A machine in setup mode starts the medium for enrolment: its firmware gets our keys, and the image starts with Secure Boot; what is revoked does not."""
    machine = bench.machine("enrol")
    machine.fresh_variables(secure_boot=False)
    medium = machine.folder / "enrol.raw"
    shutil.copyfile(next(bench.image.parent.glob("*.enrol.raw")), medium)
    plugged = ("-drive", "if=none,id=enrol,format=raw,file=/mnt/vm/enrol.raw", "-device", "usb-storage,bus=usb.0,drive=enrol,bootindex=0")
    with machine.boot(Hardware(extra=plugged)) as boot:
        boot.wait_for("(?i)enroll", BOOT_S)
        boot.wait_for_end(BOOT_S)
    with machine.boot() as boot:
        boot.wait_for("EFI stub: UEFI Secure Boot is enabled", BOOT_S)
        boot.wait_for("not set up yet", BOOT_S)
        boot.cut_power()
    revoked = variables.digest(next(bench.image.parent.glob("*[0-9].efi")).read_bytes())
    keys.revocation(bench.tools, bench.keys, revoked, machine.folder / "dbx.auth")
    machine.change_variables("--set-dbx", "/mnt/vm/dbx.auth")
    with machine.boot() as boot:
        boot.wait_for("(?i)access denied|security violation", BOOT_S)
        if boot.time_of(KERNEL_STARTS):
            raise BootError("a boot program was started that is revoked")


class Before:
    """What a thief would have kept of a box before its factory reset: its disk's header, its recovery key, and with both the key of its data."""

    def __init__(self, bench: Bench, box: Machine) -> None:
        self.key = recovery_key(box)
        self._bench = bench
        self._box = box
        self._tools = tree.make("tools", lock.read(LOCKS / "tools.lock"), pool.Pool(pool.cache() / "pool"))
        self._start = disk.partition(box.disk, luks.LABEL).start
        self._header = luks.header(box.disk, self._start)
        found = luks.volume_key(self._tools, self._header, self.key, box.folder)
        if found is None or not luks.shows_file_system(bench.tools, box.disk, self._start, found):
            raise BootError("the recovery key does not open the data before the reset, so that it does not open it after that means nothing")
        self._volume_key = found

    def is_destroyed(self) -> None:
        """The disk is as it was delivered."""
        if any(luks.header(self._box.disk, self._start)):
            raise BootError("header or slots are still on the disk")
        if not luks.is_gone(self._box.disk):
            raise BootError("the disk still has a data partition")
        self.opens_nothing()

    def opens_nothing(self) -> None:
        """Neither recovery key nor volume key of before open what is there now."""
        now = luks.header(self._box.disk, self._start)
        if luks.volume_key(self._tools, now, self.key, self._box.folder) is not None:
            raise BootError("the recovery key of before opens the disk")
        if luks.shows_file_system(self._bench.tools, self._box.disk, self._start, self._volume_key):
            raise BootError("the volume key of before opens the disk")
        slots = range(luks.SLOTS_AT, luks.HEADER_BYTES, PIECE_BYTES)
        pieces = {self._header[at : at + PIECE_BYTES] for at in slots} - {bytes(PIECE_BYTES)}
        if not pieces or any(now[at : at + PIECE_BYTES] in pieces for at in slots):
            raise BootError("slots of before are on the disk")


def choose(boot: Boot, entry: str) -> None:
    """Holds a key down until the boot menu is there, and takes its second entry."""
    deadline = boot.elapsed() + BOOT_S
    while boot.elapsed() < deadline:
        boot.type(" ")
        with contextlib.suppress(BootError):
            boot.wait_for(entry, MENU_POLL_S)
            boot.type("j\r")
            return
    raise BootError(f"the boot menu does not show {entry!r}")
