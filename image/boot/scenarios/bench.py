"""What scenarios work with: machines, the image on their disks, boxes that were provisioned before, and what a person does at a machine."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from build import report
from build.tree import Tree

from .. import sticks
from ..desk import Desk
from ..machine import KERNEL_STARTS, Boot, BootError, Machine
from ..variants import Variants

# A boot under emulation on a machine that does other things as well.
BOOT_S = 300.0
MOMENT_S = 60.0
# What somebody wrote down; the desk has keys of its own in the same folder.
RECOVERY_FILE = "written-recovery-key"
RECOVERY_KEY = re.compile(r"\b((?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8})\b")


class Bench:
    """A folder for machines, the image and the keys that it was signed with."""

    def __init__(self, tools: Tree, keys: Path, image: Path, folder: Path, sallyctl: Path) -> None:
        self.tools = tools
        self.sallyctl = sallyctl
        self.keys = keys
        self.image = image
        self.folder = folder
        self.variants = Variants(folder / "images", sallyctl.parent, keys)
        # What was made in this run, by the names of its machines' folders.
        self._made: set[str] = set()

    def machine(self, name: str, image: Path | None = None) -> Machine:
        """A machine as it comes from the factory, with this image on its disk, or another."""
        return Machine(self.tools, self.keys, self.folder / name, image or self.image)

    def box(self, name: str, enclave: str = "alpha.example") -> Machine:
        """A machine that is this enclave's box, switched off. It is provisioned once in a run, and copied for each who asks; its desk is in its folder."""
        original = self.folder / f"provisioned-{enclave}"
        self.once(original.name, lambda: self.provision(self.machine(original.name), enclave))
        return self.copy(original.name, name)

    def once(self, name: str, make: Callable[[], object]) -> None:
        """Makes what has this name, unless that went well before in this run."""
        if name not in self._made:
            make()
            self._made.add(name)

    def copy(self, original: str, name: str) -> Machine:
        """A machine that is there once more, with all that is in its folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        return Machine.copy(Machine(self.tools, self.keys, self.folder / original), folder)

    def desk(self, machine: Machine, enclave: str = "alpha.example") -> Desk:
        """The desk of a machine's officers."""
        return Desk(self.tools, self.sallyctl, machine.folder, enclave)

    def provision(self, machine: Machine, enclave: str = "alpha.example") -> str:
        """Makes a new machine this enclave's box, from a stick and with the code typed, and switches it off; returns its recovery key."""
        desk = self.desk(machine, enclave)
        document, approval, code = desk.document()
        image = machine.folder / "stick.img"
        files = {f"SALLYPORT/PROVISION/{path.name}": path for path in (document, approval)}
        sticks.make(self.tools, image, files)
        with machine.boot() as boot:
            boot.wait_for("not set up yet", BOOT_S)
            key = boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1]
            confirm(boot, key)
            boot.plug_in(image, "stick")
            boot.wait_for("wants to make this machine a box", BOOT_S)
            boot.type(code + "\n")
            times(boot, "HTTPS", boot.wait_for_https(BOOT_S))
            boot.wait_for(f"enclave +{re.escape(enclave)}", MOMENT_S)
            boot.pull_out("stick")
            switch_off(boot)
        (machine.folder / RECOVERY_FILE).write_text(key, encoding="ascii")
        return key


def visit(boot: Boot, image: Path) -> None:
    """Plugs a stick in, waits until the console says that it is done, and pulls it out."""
    before = len(boot.lines())
    boot.plug_in(image, "stick")
    if boot.wait_for("The stick is done|The stick could not be used", BOOT_S, before)[0] != "The stick is done":
        raise BootError(f"the stick could not be used; see {boot.log}")
    boot.pull_out("stick")
    boot.wait_for_screen("network", "The stick", MOMENT_S)


def recovery_key(machine: Machine) -> str:
    """What somebody wrote down when the machine was provisioned."""
    return (machine.folder / RECOVERY_FILE).read_text(encoding="ascii")


def confirm(boot: Boot, key: str) -> None:
    """Types the last group of the recovery key, and waits until the console no longer shows it."""
    boot.wait_for("type its last group", MOMENT_S)
    boot.type(key.rsplit("-", 1)[1] + "\n")
    boot.wait_for_screen("network", "RECOVERY KEY", MOMENT_S)


def switch_off(boot: Boot) -> None:
    """Presses Ctrl-Alt-Del, which restarts the machine in order; without a next start, that is its end."""
    boot.command("send-key", keys=[{"type": "qcode", "data": name} for name in ("ctrl", "alt", "delete")])
    boot.wait_for_end(MOMENT_S)


def press_power_button(boot: Boot) -> None:
    """Presses the power button once, and waits until the machine is off."""
    boot.command("system_powerdown")
    boot.wait_for_end(MOMENT_S)


def times(boot: Boot, what: str, at: float) -> None:
    """Tells how long firmware, kernel and the rest took."""
    kernel = boot.time_of(KERNEL_STARTS)
    firmware = boot.time_of("BdsDxe")
    if kernel is None or firmware is None:
        raise BootError("the console shows neither firmware nor kernel")
    report.say(f"firmware {firmware:.1f} s, kernel at {kernel:.1f} s, {what} {at - kernel:.1f} s after that; all {at:.1f} s")
