"""A machine starts: for the first time, with another TPM, with a stick that makes it a box."""

from __future__ import annotations

from ..machine import BootError
from .bench import BOOT_S, MOMENT_S, RECOVERY_KEY, Bench, confirm, switch_off, times


def smoke(bench: Bench) -> None:
    """One start: a new machine becomes a box by a stick and a typed code, and answers over HTTPS. The short form for each change."""
    bench.provision(bench.machine("smoke"))


def first_boot(bench: Bench) -> None:
    """A new box: the console says what to do, the recovery key is shown until it is written down, the next boot needs nobody."""
    machine = bench.machine("first-boot")
    with machine.boot() as boot:
        boot.wait_for("not set up yet", BOOT_S)
        key = boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1]
        times(boot, "console", boot.elapsed())
        confirm(boot, key)
        switch_off(boot)
    with machine.boot() as boot:
        boot.wait_for("not set up yet", BOOT_S)
        times(boot, "console", boot.elapsed())
        if boot.time_of(RECOVERY_KEY):
            raise BootError("the recovery key is shown although it was written down")


def other_tpm(bench: Bench) -> None:
    """The TPM is not the one that the data was sealed to: the box asks for the recovery key, and opens by itself from then on."""
    machine = bench.machine("other-tpm")
    with machine.boot() as boot:
        key = boot.wait_for(RECOVERY_KEY.pattern, BOOT_S)[1]
        confirm(boot, key)
        switch_off(boot)
    machine.fresh_tpm()
    with machine.boot() as boot:
        boot.wait_for("CANNOT BE OPENED", BOOT_S)
        boot.wait_for("Recovery key, with its dashes", MOMENT_S)
        boot.type(key.replace(key[0], "c" if key[0] != "c" else "b", 1) + "\n")
        boot.wait_for("did not open it", MOMENT_S)
        boot.type(key + "\n")
        boot.wait_for_end(BOOT_S)
    with machine.boot() as boot:
        boot.wait_for("not set up yet", BOOT_S)
        times(boot, "console", boot.elapsed())


def provision(bench: Bench) -> None:
    """A stick makes the machine a box: the code is typed, HTTPS answers, and the next start needs nobody and no stick."""
    machine = bench.machine("provision")
    bench.provision(machine)
    with machine.boot() as boot:
        times(boot, "HTTPS", boot.wait_for_https(BOOT_S))
