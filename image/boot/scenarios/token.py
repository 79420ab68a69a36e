"""The token of a box: set up at the console, opened with its PIN after each start. The image is one with `TOKENS=opensc,tpm2,softhsm`."""

from __future__ import annotations

import json

from build import report

from .. import sticks
from ..machine import Boot, BootError, Machine
from .bench import BOOT_S, MOMENT_S, RECOVERY_KEY, Bench, confirm, switch_off, times

TOKEN = """\
kind = "{kind}"
label = "alpha"
pin = "{pin}"
"""
PIN = "alpha-1234"
WRONG_PIN = "alpha-4321"
# A TPM makes keys slowly, and an emulated one under an emulated processor more so.
KEYS_S = 600.0


def softhsm(bench: Bench) -> None:
    """A blank token is set up at the console; the box starts LOCKED, serves, refuses a wrong PIN and opens with the right one."""
    _life(bench, "softhsm", "direct")


def tpm2(bench: Bench) -> None:
    """The same with the TPM of the machine as the token, which knows no Ed25519: event keys are working keys."""
    _life(bench, "tpm2", "envelope")


def sealed(bench: Bench) -> None:
    """The PIN is typed once and sealed to the TPM: from then on the token opens by itself."""
    machine = bench.machine("token-sealed")
    with machine.boot() as boot:
        _make_a_box(bench, machine, boot, "softhsm", "sealed")
        _set_up(boot)
        boot.wait_for_screen("token         ready", "TOKEN:", KEYS_S)
        switch_off(boot)
    with machine.boot() as boot:
        boot.wait_for("token +ready", BOOT_S)
        if boot.time_of("PIN of the token") is not None:
            raise BootError(f"the console asks for a PIN that is sealed; see {boot.log}")
        times(boot, "token ready without a person", boot.elapsed())
        switch_off(boot)


def opensc(bench: Bench) -> None:
    """Smart cards: without one the box says what to do, and a reader that is plugged in is let in and found."""
    machine = bench.machine("token-opensc")
    with machine.boot() as boot:
        _make_a_box(bench, machine, boot, "opensc")
        boot.wait_for("ABSENT.*no token with the label `alpha` is plugged in", BOOT_S)
        boot.command("device_add", driver="usb-ccid", bus="usb.0", id="reader")
        boot.wait_for("found: none, empty readers: 1", BOOT_S)
        switch_off(boot)


def _life(bench: Bench, kind: str, custody: str) -> None:
    machine = bench.machine(f"token-{kind}")
    with machine.boot() as boot:
        _make_a_box(bench, machine, boot, kind)
        _set_up(boot)
        boot.wait_for("token +ready", KEYS_S)
        boot.wait_for(f"event key +{custody}:", KEYS_S)
        times(boot, "HTTPS", boot.wait_for_https(KEYS_S))
        _secret(boot)
        switch_off(boot)
    with machine.boot() as boot:
        boot.wait_for("token +LOCKED", BOOT_S)
        times(boot, "HTTPS, with the token locked,", boot.wait_for_https(BOOT_S))
        _answer(boot, "PIN of the token", WRONG_PIN)
        boot.wait_for("the token refused the PIN", MOMENT_S)
        _answer(boot, "PIN of the token", PIN)
        boot.wait_for("token +ready", KEYS_S)
        boot.wait_for(f"event key +{custody}:", KEYS_S)
        boot.wait_for_screen("ready", "TOKEN:", MOMENT_S)
        _secret(boot)
        report.say(f"{kind}: refused a wrong PIN once, opened with the right one after {boot.elapsed():.0f} s")
        switch_off(boot)


def _make_a_box(bench: Bench, machine: Machine, boot: Boot, kind: str, pin: str = "ask") -> None:
    """Provisions a machine with a token of this kind."""
    _require(bench, kind)
    document, approval, code = bench.desk(machine).document(TOKEN.format(kind=kind, pin=pin))
    image = machine.folder / "stick.img"
    sticks.make(bench.tools, image, {f"SALLYPORT/PROVISION/{path.name}": path for path in (document, approval)})
    boot.wait_for("not set up yet", BOOT_S)
    confirm(boot, boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1])
    boot.plug_in(image, "stick")
    boot.wait_for("wants to make this machine a box", BOOT_S)
    boot.type(code + "\n")
    # What the stick asked showed the enclave as well.
    boot.wait_for(r"token +(being opened|LOCKED|ABSENT)", BOOT_S)
    boot.pull_out("stick")


def _require(bench: Bench, kind: str) -> None:
    manifest = next(bench.image.parent.glob(f"{bench.image.stem}.manifest.json"))
    built_for = json.loads(manifest.read_text(encoding="utf-8"))["tokens"]
    if kind not in built_for:
        raise BootError(f"the image has no {kind}: build one with TOKENS=opensc,tpm2,softhsm")


def _set_up(boot: Boot) -> None:
    """Chooses a PIN, and has the box make that of the security officer."""
    boot.wait_for("A blank token is plugged in", BOOT_S)
    _answer(boot, "New PIN for it", PIN)
    _answer(boot, "The same again", PIN)
    seen = _answer(boot, "New PIN of its security officer", "")
    made = boot.wait_for(r"security officer's PIN: (\d{16})", MOMENT_S, seen)[1]
    _answer(boot, "the last four digits", made[-4:])


def _answer(boot: Boot, asked: str, text: str) -> int:
    """Types an answer once the console asks for it; returns the number of lines that there were before."""
    boot.wait_for(asked, BOOT_S)
    seen = len(boot.lines())
    boot.type(text + "\n")
    return seen


def _secret(boot: Boot) -> None:
    """What was typed as a PIN must not stand on the console."""
    for pin in (PIN, WRONG_PIN):
        if boot.time_of(pin) is not None:
            raise BootError(f"the console shows a PIN; see {boot.log}")
