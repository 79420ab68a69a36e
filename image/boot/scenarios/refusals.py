"""What a machine must not start from or go on with."""

from __future__ import annotations

from build import report

from .. import disk
from ..machine import KERNEL_STARTS, BootError
from .bench import BOOT_S, MOMENT_S, Bench, times


def unsigned(bench: Bench) -> None:
    """A boot program without a signature, or with a flipped bit: the firmware starts neither."""
    signed = next(bench.image.parent.glob("*[0-9].efi"))
    version = signed.stem.removeprefix("sallyport-")
    name = f"sallyport_{version}.efi"
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


def foreign(bench: Bench) -> None:
    """A boot program signed with another key: the firmware does not start it. One whose measurements another key signed: the data stays closed."""
    version = bench.image.stem.removeprefix("sallyport-")
    name = f"sallyport_{version}.efi"
    machine = bench.box("foreign")
    genuine = bench.image.with_suffix(".efi")
    disk.replace_boot_program(bench.tools, machine.disk, bench.variants.foreign(version, key="db").program, name)
    with machine.boot() as boot:
        boot.wait_for(r"(?i)access denied|security violation", BOOT_S)
        if boot.time_of(KERNEL_STARTS):
            raise BootError("a boot program with a foreign signature was started")
    report.say("signed with another key: refused")
    other = bench.variants.foreign(version, key="pcr")
    if other.root_hash != bench.variants.of(bench.image).root_hash:
        raise BootError("the programs are not those of the image: build it anew")
    disk.replace_boot_program(bench.tools, machine.disk, other.program, name)
    with machine.boot() as boot:
        boot.wait_for("CANNOT BE OPENED", BOOT_S)
        boot.wait_for("Recovery key, with its dashes", MOMENT_S)
        if boot.time_of("The server starts|enclave "):
            raise BootError("the box went on without its data")
    report.say("measurements signed with another key: the data stays closed, the recovery key is asked for")
    disk.replace_boot_program(bench.tools, machine.disk, genuine, name)
    with machine.boot() as boot:
        times(boot, "HTTPS with the right one again", boot.wait_for_https(BOOT_S))
