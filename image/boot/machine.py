"""A virtual machine: QEMU with OVMF and swtpm from the locked tree of tools, its serial console kept with times.

Everything waits for what it needs to see; nothing sleeps. The processes that a machine starts end with it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TextIO

from build import report
from build.signing import NAMES, OWNER
from build.tree import Mount, Tree

CODES = re.compile(rb"\x1b(?:\[[0-9;?!=]*[A-Za-z]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][A-Z0-9]|[=>78cM])|\r")
FIRMWARE = Path("/usr/share/OVMF")
KERNEL_STARTS = re.compile(r"EFI stub: (UEFI Secure Boot|Loaded initrd|Measured initrd)")
# The kernel looks for ten ticks of the timer in 50 ms. Where this machine did not let QEMU run meanwhile there are none: no fault of the guest, which
# starts again, as a real machine would.
STARVED = "IO-APIC + timer doesn't work"
STARVED_MAX = 5
SCREEN_STARTS = "  SALLYPORT "
VARIABLES = "/mnt/vm/variables.fd"
POLL_S = 0.05
# A screen of which no more comes for so long is complete.
DRAWN_S = 1.0
HTTPS_POLL_S = 0.5
HTTPS_TIMEOUT_S = 5.0
ASKERS = int(HTTPS_TIMEOUT_S / HTTPS_POLL_S)
MONITOR_TIMEOUT_S = 120.0


class BootError(Exception):
    """A machine did not do what it should; the text says what was waited for."""


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a machine is made of."""

    cores: int = 2
    memory_mib: int = 1024
    processor: str = "EPYC"
    tpm: bool = True
    uuid: str = "11111111-2222-4333-8444-555555555555"
    sticks: tuple[Path, ...] = ()
    # Where in the machine's folder every write to the disk is recorded, with the flushes between them.
    log: Path | None = None
    extra: tuple[str, ...] = ()


class Machine:
    """One machine with a disk, firmware variables and a TPM that outlive its boots."""

    def __init__(self, tools: Tree, keys: Path, folder: Path, image: Path | None = None) -> None:
        self.tools = tools
        self.keys = keys
        self.folder = folder
        if image is not None:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.disk = folder / "disk.raw"
        # On this machine; the same after each start, as for whoever stays connected.
        self.port = _free_port()
        if image is not None:
            subprocess.run(["cp", "--sparse=always", image, self.disk], check=True)
            with self.disk.open("r+b") as file:
                file.truncate(image.stat().st_size + (1 << 30))
            self.fresh_variables()
            self.fresh_tpm()

    @staticmethod
    def copy(original: Machine, folder: Path) -> Machine:
        """The same machine once more: disk, firmware variables, TPM and what lies beside them."""
        subprocess.run(["cp", "-a", "--sparse=always", "--reflink=auto", original.folder, folder], check=True)
        return Machine(original.tools, original.keys, folder)

    def fresh_tpm(self) -> None:
        """Gives the machine another TPM, as after a repair."""
        tpm = self.folder / "tpm"
        shutil.rmtree(tpm, ignore_errors=True)
        tpm.mkdir()
        setup = ["swtpm_setup", "--tpm2", "--tpmstate", "/mnt/vm/tpm", "--pcr-banks", "sha256", "--config", "/dev/null"]
        self._tool(setup)

    def fresh_variables(self, *, secure_boot: bool = True) -> None:
        """Gives the machine the variables of a firmware that this image's keys were enrolled in, or of one in setup mode, which starts everything."""
        firmware = ["-i", f"{FIRMWARE}/OVMF_VARS_4M.fd", "-o", VARIABLES]
        enrolled: list[str] = []
        for name, option in zip(NAMES, ("--set-pk", "--add-kek", "--add-db"), strict=True):
            enrolled += [option, str(OWNER), f"/mnt/keys/{name}.crt"]
        self._tool(["virt-fw-vars", *firmware, *([*enrolled, "--secure-boot"] if secure_boot else [])], [Mount(self.keys, "keys")])

    def change_variables(self, *changes: str) -> None:
        """Changes what the firmware knows, by options of `virt-fw-vars`, which sees the keys as `/mnt/keys` and the machine's folder as `/mnt/vm`."""
        self._tool(["virt-fw-vars", "--inplace", VARIABLES, *changes], [Mount(self.keys, "keys")])

    def boot(self, hardware: Hardware | None = None) -> Boot:
        """Switches the machine on."""
        return Boot(self, hardware or Hardware())

    def mounts(self) -> list[Mount]:
        """What its processes see."""
        return [Mount(self.folder, "vm", writable=True)]

    def _tool(self, command: Sequence[str], mounts: Sequence[Mount] = ()) -> None:
        order = self.tools.command(command, [*self.mounts(), *mounts])
        done = subprocess.run(order, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BootError(f"{command[0]}: {done.stdout}{done.stderr}")


class Boot:
    """One run of a machine, from power on to power off. A context manager: what it started ends with it."""

    def __init__(self, machine: Machine, hardware: Hardware) -> None:
        self.machine = machine
        self.port = machine.port
        # How many lines of the console a dialogue is done with.
        self.seen = 0
        self._hardware = hardware
        self.memory_mib = hardware.memory_mib
        self._lines: list[tuple[float, str]] = []
        self._partial = b""
        self._changed = threading.Condition()
        self._ended = False
        self._cut = False
        self._processes: list[subprocess.Popen[bytes]] = []
        number = len(list(machine.folder.glob("serial-*.log"))) + 1
        self.log = machine.folder / f"serial-{number}.log"
        self.started = time.monotonic()
        self._qemu = self._switch_on()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Boot:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.cut_power()

    def elapsed(self) -> float:
        """Seconds since power on."""
        return time.monotonic() - self.started

    def lines(self) -> list[tuple[float, str]]:
        """What the serial console said, each line with the seconds since power on."""
        with self._changed:
            return list(self._lines)

    def wait_for(self, pattern: str, timeout_s: float, since: int = 0) -> re.Match[str]:
        """Waits until a line of the serial console matches; lines before number `since` do not count."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        seen = since
        with self._changed:
            while True:
                for _, line in [*self._lines[seen:], (0.0, _text(self._partial))]:
                    found = expression.search(line)
                    if found:
                        return found
                seen = len(self._lines)
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    what = "the machine went off" if self._ended else f"{timeout_s:.0f} s passed"
                    raise BootError(f"{what} before the console said {pattern!r}; see {self.log}")
                self._changed.wait(min(left, 1.0))

    def wait_for_screen(self, shown: str, gone: str, timeout_s: float) -> None:
        """Waits until the console's newest screen shows one thing and no longer another."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                screen: list[str] = []
                for _, line in self._lines:
                    screen = [line] if SCREEN_STARTS in line else [*screen, line]
                text = "\n".join(screen)
                complete = bool(self._lines) and self.elapsed() - self._lines[-1][0] > DRAWN_S
                if complete and shown in text and gone not in text:
                    return
                left = deadline - time.monotonic()
                if left <= 0 or self._ended:
                    raise BootError(f"the console does not show {shown!r} without {gone!r}; see {self.log}")
                self._changed.wait(min(left, 1.0))

    def time_of(self, pattern: str | re.Pattern[str]) -> float | None:
        """When a line that matches was first seen."""
        return next((at for at, line in self.lines() if re.search(pattern, line)), None)

    def wait_for_https(self, timeout_s: float, path: str = "/_matrix/client/versions", *, plain: bool = False) -> float:
        """Waits until the server answers, with TLS or without; returns the seconds since power on."""

        def answered() -> float | None:
            with contextlib.suppress(OSError, http.client.HTTPException):
                status, _ = self.ask("GET", path, plain=plain)
                return self.elapsed() if status == 200 else None
            return None

        deadline = time.monotonic() + timeout_s
        # Side by side: QEMU holds a question that comes before the machine has a network until its time is over.
        askers = concurrent.futures.ThreadPoolExecutor(ASKERS)
        asked: list[concurrent.futures.Future[float | None]] = []
        try:
            while time.monotonic() < deadline:
                if self.ended():
                    raise BootError(f"the machine went off before it answered; see {self.log}")
                if len(asked) < ASKERS:
                    asked.append(askers.submit(answered))
                with self._changed:
                    self._changed.wait(HTTPS_POLL_S)
                times = [at for one in asked if one.done() and (at := one.result()) is not None]
                if times:
                    return min(times)
                asked = [one for one in asked if not one.done()]
            raise BootError(f"no answer over HTTPS within {timeout_s:.0f} s; see {self.log}")
        finally:
            askers.shutdown(wait=False, cancel_futures=True)

    def ask(
        self,
        method: str,
        path: str,
        body: str | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = HTTPS_TIMEOUT_S,
        plain: bool = False,
    ) -> tuple[int, bytes]:
        """Asks the server over HTTPS, whatever its certificate, or without TLS; returns the status and the body."""
        # Without this machine's certificates, which take long to read.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout_s, context=context)
        if plain:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 20)

    def type(self, text: str) -> None:
        """Types at the serial console."""
        assert self._qemu.stdin is not None
        self._qemu.stdin.write(text.encode())
        self._qemu.stdin.flush()

    def ended(self) -> bool:
        """Whether the machine is off."""
        with self._changed:
            return self._ended

    def wait_for_end(self, timeout_s: float) -> None:
        """Waits until the machine switches itself off, or resets if it was told to end then."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout_s):
                raise BootError(f"the machine is still on after {timeout_s:.0f} s; see {self.log}")

    def cut_power(self) -> None:
        """Ends the machine at once, and what belongs to it."""
        self._cut = True
        for process in reversed(self._processes):
            if process.poll() is None:
                process.kill()
            process.wait()
        self._reader.join(timeout=5)

    def command(self, name: str, **arguments: object) -> object:
        """Gives a command to QEMU's monitor."""
        with self._monitor() as monitor:
            return monitor.ask(name, **arguments)

    def plug_in(self, image: Path, name: str, *, read_only: bool = False) -> None:
        """Plugs a stick in."""
        inside = _inside(self.machine.folder, image)
        file = {"driver": "file", "filename": inside}
        self.command("blockdev-add", **{"driver": "raw", "node-name": name, "read-only": read_only, "file": file})
        self.command("device_add", **{"driver": "usb-storage", "bus": "usb.0", "drive": name, "id": name, "removable": True})

    def pull_out(self, name: str) -> None:
        """Pulls a stick out. Afterwards its image is the caller's alone."""
        with self._monitor() as monitor:
            monitor.ask("device_del", id=name)
            monitor.wait_for("DEVICE_DELETED", device=name)
            monitor.ask("blockdev-del", **{"node-name": name})

    @contextlib.contextmanager
    def _monitor(self) -> Iterator[Monitor]:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(MONITOR_TIMEOUT_S)
            link.connect(str(self.machine.folder / "monitor"))
            yield Monitor(link)

    def _start(self, command: Sequence[str], **pipes: int) -> subprocess.Popen[bytes]:
        order = self.machine.tools.command(command, self.machine.mounts(), network=True)
        process = subprocess.Popen(order, **pipes)  # type: ignore[call-overload]
        self._processes.append(process)
        return process

    def _start_tpm(self) -> None:
        sock = self.machine.folder / "tpm.sock"
        sock.unlink(missing_ok=True)
        state, control = "dir=/mnt/vm/tpm", "type=unixio,path=/mnt/vm/tpm.sock"
        process = self._start(["swtpm", "socket", "--tpm2", "--tpmstate", state, "--ctrl", control, "--terminate"])
        while not sock.exists():
            if process.poll() is not None:
                raise BootError("swtpm ended at once")
            time.sleep(POLL_S)

    def _start_qemu(self) -> subprocess.Popen[bytes]:
        hardware = self._hardware
        (self.machine.folder / "monitor").unlink(missing_ok=True)
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        command += ["-machine", "q35,accel=tcg,smm=on", "-cpu", hardware.processor, "-smp", str(hardware.cores)]
        command += ["-m", str(hardware.memory_mib), "-uuid", hardware.uuid]
        # No suspend to RAM, for which this firmware would keep memory: nothing here suspends.
        command += ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"]
        command += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={FIRMWARE}/OVMF_CODE_4M.secboot.fd"]
        command += ["-drive", f"if=pflash,format=raw,unit=1,file={VARIABLES}"]
        command += self._disk()
        command += ["-device", "virtio-blk-pci,drive=disk,bootindex=1"]
        command += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:443"]
        command += ["-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
        command += ["-device", "qemu-xhci,id=usb", "-device", "i6300esb"]
        command += ["-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial"]
        command += ["-qmp", "unix:/mnt/vm/monitor,server=on,wait=off"]
        if hardware.tpm:
            command += ["-chardev", "socket,id=tpm,path=/mnt/vm/tpm.sock", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
            command += ["-device", "tpm-crb,tpmdev=tpm0"]
        for number, stick in enumerate(hardware.sticks):
            inside = _inside(self.machine.folder, stick)
            command += ["-drive", f"if=none,id=stick{number},format=raw,file={inside}"]
            command += ["-device", f"usb-storage,bus=usb.0,drive=stick{number},removable=on"]
        command += hardware.extra
        return self._start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def _disk(self) -> list[str]:
        """The disk, behind a recorder if one is wanted."""
        if self._hardware.log is None:
            return ["-drive", "if=none,id=disk,format=raw,file=/mnt/vm/disk.raw,cache=writeback,discard=unmap"]
        log = _inside(self.machine.folder, self._hardware.log)
        nodes: list[dict[str, object]] = [
            {"driver": "file", "filename": "/mnt/vm/disk.raw", "discard": "unmap", "node-name": "disk-file"},
            {"driver": "file", "filename": log, "node-name": "log-file"},
            {"driver": "blklogwrites", "file": "disk-file", "log": "log-file", "log-super-update-interval": 1, "discard": "unmap", "node-name": "disk"},
        ]
        return [word for node in nodes for word in ("-blockdev", json.dumps(node))]

    def _switch_on(self) -> subprocess.Popen[bytes]:
        if self._hardware.tpm:
            self._start_tpm()
        return self._start_qemu()

    def _read(self) -> None:
        with self.log.open("w", encoding="utf-8") as log:
            for _ in range(STARVED_MAX):
                before = len(self._lines)
                self._copy(log)
                if self._cut or not any(STARVED in line for _, line in self._lines[before:]):
                    break
                report.say("this machine is too busy for the timer of the emulated one, which starts again")
                self._qemu = self._switch_on()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _copy(self, log: TextIO) -> None:
        """Takes over what the serial console says, until the machine goes off."""
        assert self._qemu.stdout is not None
        while chunk := self._qemu.stdout.read1(65536):  # type: ignore[attr-defined]
            at = self.elapsed()
            with self._changed:
                *complete, self._partial = (self._partial + chunk).split(b"\n")
                for raw in complete:
                    line = _text(raw)
                    self._lines.append((at, line))
                    log.write(f"{at:8.2f} {line}\n")
                log.flush()
                self._changed.notify_all()


class Monitor:
    """A conversation with QEMU's monitor (QEMU machine protocol): a line of JSON each way, with events in between."""

    def __init__(self, link: socket.socket) -> None:
        self._stream = link.makefile("rwb")
        self._events: list[dict[str, object]] = []
        self._line()
        self.ask("qmp_capabilities")

    def ask(self, name: str, **arguments: object) -> object:
        """Gives a command, and returns its answer."""
        self._stream.write(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        self._stream.flush()
        while True:
            answer = self._line()
            if "error" in answer:
                raise BootError(f"QEMU: {answer['error']}")
            if "return" in answer:
                return answer["return"]
            self._events.append(answer)

    def wait_for(self, event: str, **data: object) -> None:
        """Waits for an event since the conversation began, of which this is part of the data."""
        while True:
            for seen in self._events:
                about = seen.get("data")
                if seen.get("event") == event and isinstance(about, dict) and data.items() <= about.items():
                    return
            self._events = [self._line()]

    def _line(self) -> dict[str, object]:
        try:
            line = self._stream.readline()
        except TimeoutError:
            raise BootError(f"QEMU's monitor said nothing for {MONITOR_TIMEOUT_S:.0f} s") from None
        if not line:
            raise BootError("the machine went off")
        said: dict[str, object] = json.loads(line)
        return said


def _text(raw: bytes) -> str:
    return CODES.sub(b"", raw).decode("utf-8", "replace")


def _inside(folder: Path, path: Path) -> str:
    """The path of a file of the machine's folder as its processes see it."""
    return f"/mnt/vm/{path.resolve().relative_to(folder.resolve())}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
