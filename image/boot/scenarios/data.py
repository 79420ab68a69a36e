"""The data partition: who can open it, when the machine is not the one that it was made on, and how it ends."""

from __future__ import annotations

import hashlib
import uuid

from build import report

from .. import keys
from ..machine import Boot, BootError, Hardware, Machine
from .bench import BOOT_S, MOMENT_S, Bench, recovery_key, switch_off, times

# A machine that is not the one of the others.
ANOTHER = Hardware(uuid="22222222-3333-4444-8555-666666666666")


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
