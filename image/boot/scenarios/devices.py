"""What is plugged in: a plain stick is let in, a keyboard while somebody is asked to type, and a stick that is a keyboard as well never."""

from __future__ import annotations

import contextlib
from contextlib import ExitStack

from build import report

from .. import sticks
from ..gadget import Gadget
from ..machine import Boot, BootError
from .bench import BOOT_S, MOMENT_S, RECOVERY_KEY, Bench, switch_off

ATTEMPTS = 4
# Until the console has drawn what became of an answer.
CONSOLE_S = 15.0


def keyboards(bench: Bench) -> None:
    """A stick that is a keyboard too is refused, a plain one of the same make is read; a keyboard types while the console asks, and not before or after."""
    silent(bench)
    asking(bench)


def silent(bench: Bench) -> None:
    """A box that asks nothing."""
    machine = bench.box("keyboards-silent")
    images = {name: machine.folder / f"{name}.img" for name in ("both", "plain")}
    for image in images.values():
        sticks.make(bench.tools, image, {}, writable=True)
    with ExitStack() as plugged, machine.boot() as boot:
        boot.wait_for_https(BOOT_S)
        refused = [
            plugged.enter_context(Gadget(boot, "both", image=images["both"], keyboard=True)),
            plugged.enter_context(Gadget(boot, "keyboard", keyboard=True)),
        ]
        for gadget in refused:
            gadget.wait_until_described()
        before = len(boot.lines())
        plain = plugged.enter_context(Gadget(boot, "plain", image=images["plain"]))
        plain.wait_until_in_use()
        boot.wait_for("The stick is done", BOOT_S, before)
        if "nothing for this box" not in sticks.result(bench.tools, images["plain"]):
            raise BootError("the plain stick has no result")
        shut_out(refused)
        if sticks.names(bench.tools, images["both"], "SALLYPORT/RESULT"):
            raise BootError("the stick with a keyboard was written to")
        report.say("a plain stick is read; one that is a keyboard too and a keyboard, both plugged in before, are refused")


def asking(bench: Bench) -> None:
    """A new machine that asks for the recovery key."""
    machine = bench.machine("keyboards-asking")
    image = machine.folder / "both.img"
    sticks.make(bench.tools, image, {}, writable=True)
    with ExitStack() as plugged, machine.boot() as boot:
        boot.wait_for("not set up yet", BOOT_S)
        key = boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1]
        both = plugged.enter_context(Gadget(boot, "both", image=image, keyboard=True))
        both.wait_until_described()
        keyboard = plugged.enter_context(Gadget(boot, "keyboard", keyboard=True))
        keyboard.wait_until_in_use()
        retype(boot, keyboard, key.rsplit("-", 1)[1])
        keyboard.wait_until_shut_out()
        shut_out([both])
        report.say("the keyboard typed the answer and was shut out again; the stick with a keyboard was refused meanwhile, too")
        switch_off(boot)


def retype(boot: Boot, keyboard: Gadget, text: str) -> None:
    """Types until the console is satisfied: under emulation a key may come twice, which a person would see as well."""
    for _ in range(ATTEMPTS):
        before = len(boot.lines())
        keyboard.type(text)
        boot.wait_for("That was not its last group|not set up yet", MOMENT_S, before)
        with contextlib.suppress(BootError):
            boot.wait_for_screen("network", "RECOVERY KEY", CONSOLE_S)
            return
    raise BootError(f"the console did not take what was typed {ATTEMPTS} times; see {boot.log}")


def shut_out(refused: list[Gadget]) -> None:
    """None of these was ever let in."""
    for gadget in refused:
        if gadget.was_in_use():
            raise BootError(f"{gadget.name} was let in")
