"""What is tried with a machine, by subject. Each scenario is a function; its first line says what it shows."""

from __future__ import annotations

from collections.abc import Callable

from . import backup, data, devices, journal, powercut, refusals, speed, start, talk, token, updates
from .bench import Bench

ALL: dict[str, Callable[[Bench], None]] = {
    "smoke": start.smoke,
    "first-boot": start.first_boot,
    "other-tpm": start.other_tpm,
    "provision": start.provision,
    "speed": speed.speed,
    "keyboards": devices.keyboards,
    "talk": talk.talk,
    "two-boxes": talk.two_boxes,
    "moved": data.moved,
    "changed-keys": data.changed_keys,
    "no-tpm": data.no_tpm,
    "recovery-stick": data.recovery_stick,
    "factory-reset": data.factory_reset,
    "factory-reset-stick": data.factory_reset_stick,
    "enrol": data.enrol,
    "secure-boot-off": data.secure_boot_off,
    "unsigned": refusals.unsigned,
    "flipped": refusals.flipped,
    "update": updates.update,
    "fall-back": updates.fall_back,
    "cut-update": powercut.update,
    "cut-first": powercut.first,
    "rot": updates.rot,
    "foreign": refusals.foreign,
    "token": token.softhsm,
    "token-sealed": token.sealed,
    "token-tpm2": token.tpm2,
    "token-opensc": token.opensc,
    "restore-stick": backup.restore_stick,
    "config": backup.config,
    "odd-sticks": backup.odd_sticks,
    "journal": journal.journal,
}
