"""What is tried with a machine. Each scenario is a function; its first line says what it shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from build import report
from build.tree import Tree

from . import disk, sticks
from .desk import Desk
from .machine import KERNEL_STARTS, Boot, BootError, Machine

# A boot under emulation on a machine that does other things as well.
BOOT_S = 300.0
MOMENT_S = 60.0
RECOVERY_KEY = re.compile(r"\b((?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8})\b")


class Bench:
    """What scenarios work with."""

    def __init__(self, tools: Tree, keys: Path, image: Path, folder: Path, sallyctl: Path) -> None:
        self.tools = tools
        self.sallyctl = sallyctl
        self.keys = keys
        self.image = image
        self.folder = folder

    def machine(self, name: str) -> Machine:
        """A machine as it comes from the factory, with this image on its disk."""
        return Machine(self.tools, self.keys, self.folder / name, self.image)


def first_boot(bench: Bench) -> None:
    """A new box: the console says what to do, the recovery key is shown until it is written down, the next boot needs nobody."""
    machine = bench.machine("first-boot")
    with machine.boot() as boot:
        boot.wait_for("not set up yet", BOOT_S)
        key = boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1]
        times(boot, "console", boot.elapsed())
        _confirm(boot, key)
        _switch_off(boot)
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
        _confirm(boot, key)
        _switch_off(boot)
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
    document, approval, code = Desk(bench.tools, bench.sallyctl, machine.folder).document()
    image = machine.folder / "stick.img"
    sticks.make(bench.tools, image, {f"SALLYPORT/PROVISION/{path.name}": path for path in (document, approval)})
    with machine.boot() as boot:
        boot.wait_for("not set up yet", BOOT_S)
        key = boot.wait_for(RECOVERY_KEY.pattern, MOMENT_S)[1]
        _confirm(boot, key)
        boot.plug_in(image, "stick")
        boot.wait_for("wants to make this machine a box", BOOT_S)
        boot.type(code + "\n")
        times(boot, "HTTPS", boot.wait_for_https(BOOT_S))
        boot.wait_for("enclave +alpha.example", MOMENT_S)
        boot.pull_out("stick")
        _switch_off(boot)
    with machine.boot() as boot:
        times(boot, "HTTPS", boot.wait_for_https(BOOT_S))


def unsigned(bench: Bench) -> None:
    """A boot program without a signature, or with a flipped bit: the firmware starts neither."""
    signed = next(bench.image.parent.glob("*[0-9].efi"))
    version = signed.stem.removeprefix("sallyport-")
    name = f"EFI/Linux/sallyport_{version}.efi"
    flipped = bench.folder / "flipped.efi"
    content = bytearray(signed.read_bytes())
    content[len(content) // 2] ^= 1
    bench.folder.mkdir(parents=True, exist_ok=True)
    flipped.write_bytes(content)
    for program in (signed.with_suffix(".unsigned.efi"), flipped):
        machine = bench.machine("unsigned")
        disk.replace_boot_program(bench.tools, machine.disk, program, name)
        with machine.boot() as boot:
            boot.wait_for(r"(?i)access denied|security violation", BOOT_S)
            if boot.time_of(KERNEL_STARTS):
                raise BootError(f"{program.name} was started")


def flipped(bench: Bench) -> None:
    """Bits of the root are flipped on the disk: the kernel panics as soon as it reads one."""
    machine = bench.machine("flipped")
    disk.flip(machine.disk, "root-a", [place << 20 for place in range(1, 26)])
    with machine.boot() as boot:
        boot.wait_for("dm-verity.*corrupted|dm-verity device corrupted|Kernel panic", BOOT_S)
        boot.wait_for_end(BOOT_S)


def _confirm(boot: Boot, key: str) -> None:
    """Types the last group of the recovery key, and waits until the console no longer shows it."""
    boot.type(key.rsplit("-", 1)[1] + "\n")
    boot.wait_for_screen("network", "RECOVERY KEY", MOMENT_S)


def _switch_off(boot: Boot) -> None:
    """Presses Ctrl-Alt-Del, which restarts the machine in order; without a next start, that is its end."""
    boot.command("send-key", keys=[{"type": "qcode", "data": name} for name in ("ctrl", "alt", "delete")])
    boot.wait_for_end(MOMENT_S)


def times(boot: Boot, what: str, at: float) -> None:
    """Tells how long firmware, kernel and the rest took."""
    kernel = boot.time_of(KERNEL_STARTS)
    firmware = boot.time_of("BdsDxe")
    if kernel is None or firmware is None:
        raise BootError("the console shows neither firmware nor kernel")
    report.say(f"firmware {firmware:.1f} s, kernel at {kernel:.1f} s, {what} {at - kernel:.1f} s after that; all {at:.1f} s")


ALL: dict[str, Callable[[Bench], None]] = {
    "first-boot": first_boot,
    "other-tpm": other_tpm,
    "provision": provision,
    "unsigned": unsigned,
    "flipped": flipped,
}
