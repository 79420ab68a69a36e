"""How fast a box starts, how much of that is ours, and how much memory it takes."""

from __future__ import annotations

import re
import statistics

from build import report

from ..machine import KERNEL_STARTS, Boot, BootError, Machine
from .bench import BOOT_S, MOMENT_S, Bench, switch_off

STARTS = 3
# Goals, in seconds, in parts of the image without our units, and in MiB.
START_S = 38.0
OURS_S = 5.0
RATIO = 1.15
MEMORY_MIB = 160
# The machine has been left alone for as many rounds of the program that tells of its memory.
CALM_ROUNDS = 6
UNIT = re.compile(r"\[ *(\d+\.\d+)\] systemd\[1\]: (Starting|Started|Finished) (\S+?\.(?:service|mount|target))")


def speed(bench: Bench) -> None:
    """Seconds from the kernel to HTTPS, against the same image without our units; their own seconds, and the memory of the idle machine."""
    ours, bare = bench.box("speed-ours"), bench.machine("speed-bare", bench.variants.bare("0.1.1").disk)
    with bare.boot() as boot:
        boot.wait_for_https(BOOT_S, plain=True)
        switch_off(boot)
    # In turns, so that whatever else this machine does is in both.
    pairs = [(started(ours, plain=False), started(bare, plain=True)) for _ in range(STARTS)]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    report.say(f"from the kernel to an answer, medians of {STARTS}: {mine:.1f} s; without our units {theirs:.1f} s; all {pairs}")
    units, memory = measured(bench)
    figures = [
        ("from the kernel to HTTPS", mine, START_S, "s"),
        ("of that is ours, by units that HTTPS waits for", units, OURS_S, "s"),
        ("in parts of the time without our units", mine / theirs, RATIO, ""),
        ("memory of the idle machine", memory, MEMORY_MIB, "MiB"),
    ]
    missed = 0
    for what, figure, goal, unit in figures:
        missed += figure > goal
        report.say(f"{figure:8.2f} {unit:4}{what}, of at most {goal:g}{'  MISSED' if figure > goal else ''}")
    if missed:
        raise BootError(f"{missed} of {len(figures)} goals are missed: they are set for programs of a release, on a machine that does nothing else")


def started(machine: Machine, *, plain: bool) -> float:
    """Seconds from the kernel's first line to an answer, on a start that is not the first."""
    with machine.boot() as boot:
        answered = boot.wait_for_https(BOOT_S, plain=plain)
        kernel = boot.time_of(KERNEL_STARTS)
        if kernel is None:
            raise BootError("the console does not show the kernel")
        switch_off(boot)
    return round(answered - kernel, 1)


def measured(bench: Bench) -> tuple[float, float]:
    """On a box whose journal is on the console: the seconds of our units that HTTPS waits for, and the memory in MiB when it has calmed down."""
    machine = bench.machine("speed-measured", bench.variants.measured("0.1.2").disk)
    bench.provision(machine)
    with machine.boot() as boot:
        boot.wait_for_https(BOOT_S)
        begun = int(boot.wait_for(r"measure: round (\d+)", MOMENT_S, len(boot.lines()))[1])
        calm = begun + CALM_ROUNDS
        pattern = rf"measure: round {calm} MemTotal=(\d+) MemFree=(\d+) MemAvailable=(\d+)(.* Percpu=\d+)"
        *sizes, others = boot.wait_for(pattern, BOOT_S).groups()
        total, free, available = (int(kib) for kib in sizes)
        report.say(f"in KiB:{others}")
        ours = tell_units(boot)
        for _, line in boot.lines():
            if "measure: unit" in line:
                report.say(line.split("measure: ")[1])
        switch_off(boot)
    given = 1024 * boot.memory_mib
    report.say(f"memory in MiB: {boot.memory_mib} given, {total >> 10} for programs, {free >> 10} free, {available >> 10} available")
    report.say(f"{(total - available) >> 10} MiB used by programs and caches that cannot go, {(given - total) >> 10} kept by kernel and firmware")
    return ours, (given - available) / 1024


def tell_units(boot: Boot) -> float:
    """Tells how long our units took; returns the sum of those that HTTPS waits for."""
    begun: dict[str, float] = {}
    took: dict[str, float] = {}
    for _, line in boot.lines():
        found = UNIT.search(line)
        if not found:
            continue
        at, what, unit = float(found[1]), found[2], found[3]
        if what == "Starting":
            begun.setdefault(unit, at)
        elif unit in begun:
            took.setdefault(unit, at - begun[unit])
    if "sallyport.service" not in took:
        raise BootError(f"the journal does not say when the server started; see {boot.log}")
    for unit, seconds in sorted(took.items(), key=lambda item: -item[1])[:20]:
        report.say(f"{unit}: {seconds:.2f} s, from {begun[unit]:.2f} s on")
    return sum(took.get(unit, 0.0) for unit in ("sallyport-settle.service", "sallyport.service"))
