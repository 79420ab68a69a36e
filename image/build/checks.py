"""What must hold of a tree before it is packed. A build that would break a promise fails."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path

from .files import BuildError

UNITS = "usr/lib/systemd/system"
PROGRAMS = ("usr/bin", "usr/sbin")
# What lets somebody in, or something run that is not ours.
FORBIDDEN = re.compile(
    r"^(sh|bash|dash|ash|zsh|ksh|csh|fish|busybox|toybox|login|agetty|getty|sulogin|su|sudo|doas|passwd|sshd?|dropbear|telnetd?|"
    r"dpkg.*|apt.*|rpm|dbus-.*|busctl|python.*|perl.*|lua.*|awk|mawk|gawk|vi|ed|nc|ncat|socat|curl|wget|gdb|strace|run0|pkexec|"
    r"systemd-run|systemd-sulogin-shell|systemd-nspawn|machinectl|debug-shell.*)$"
)
EXEC = re.compile(r"^Exec(?:StartPre|Start|StartPost|Stop|StopPost|Reload|Condition)=[-@:+!|]*(\S+)", re.MULTILINE)
# `systemd-analyze security` counts in tenths: the exposure of each unit of ours is at most 1.5.
EXPOSURE_MAX = 15


def root(tree: Path) -> None:
    """Checks the root: nobody can log in, nothing runs but what is listed, our units are shut in."""
    problems = _strangers(tree) + _programs(tree)
    if problems:
        raise BuildError("the root breaks its promises:\n  " + "\n  ".join(problems))
    _exposure(tree)


def initrd(tree: Path) -> None:
    """Checks the initrd: no way in, and every unit finds its program."""
    problems = _strangers(tree) + _programs(tree)
    if problems:
        raise BuildError("the initrd breaks its promises:\n  " + "\n  ".join(problems))


def _strangers(tree: Path) -> list[str]:
    found = []
    for path in sorted(tree.rglob("*")):
        name, mode = path.relative_to(tree), path.lstat().st_mode
        if FORBIDDEN.match(path.name) and str(name.parent) in (*PROGRAMS, "usr/lib/systemd", UNITS):
            found.append(f"{name} must not be there")
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            found.append(f"{name} runs with more rights than whoever starts it")
        if stat.S_ISREG(mode) and mode & 0o022:
            found.append(f"{name} may be written by everybody")
        if stat.S_ISREG(mode) and mode & 0o111 and _starts_with(path, b"#!"):
            found.append(f"{name} is a script, and there is nothing to run it")
        if stat.S_ISLNK(mode) and not _leads_somewhere(tree, path):
            found.append(f"{name} leads to {os.readlink(path)}, which is not there")
    return found


def _programs(tree: Path) -> list[str]:
    """The programs that units start and the tree lacks."""
    found = []
    for path in sorted((tree / UNITS).rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        for program in EXEC.findall(path.read_text(encoding="utf-8")):
            places = [program.lstrip("/")] if program.startswith("/") else [f"{folder}/{program}" for folder in PROGRAMS]
            if not any(os.path.lexists(tree / place) for place in places):
                found.append(f"{path.name} starts {program}, which is not there")
    return found


def _exposure(tree: Path) -> None:
    """Has systemd judge each service of ours."""
    # An empty one is masked: it starts nothing.
    services = sorted(path.name for path in (tree / UNITS).glob("sallyport*.service") if path.stat().st_size)
    for name in services:
        options = ["--offline=yes", f"--threshold={EXPOSURE_MAX}", f"--root={tree}", "--no-pager"]
        unit = name.replace("@.", "@x.")
        done = subprocess.run(["systemd-analyze", "security", *options, unit], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BuildError(f"{name} is not shut in enough:\n{done.stdout}{done.stderr}")


def _starts_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


def _leads_somewhere(tree: Path, link: Path) -> bool:
    """Whether a link leads to something in the tree, or to what exists only while the machine runs."""
    value = os.readlink(link)
    if value.startswith(("/", "../run/", "/run/")):
        return value.startswith(("/run/", "/proc/", "../run/")) or os.path.lexists(tree / value.lstrip("/"))
    return os.path.lexists(os.path.normpath(link.parent / value))
