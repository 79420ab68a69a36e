"""A USB device in software: mass storage, a keyboard, or both in one. QEMU's usb-redir plugs it in, with the descriptors that it tells.

The protocol of usbredir 0.7: packets of a header (type, length, id), a header of the type, and data. Requests are answered at once,
except for what a keyboard has to say: nothing, until somebody types.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path

from .machine import Boot, BootError

HELLO, CONNECT, INTERFACES, ENDPOINTS = 0, 1, 4, 5
SET_CONFIGURATION, GET_CONFIGURATION, CONFIGURATION_STATUS = 6, 7, 8
SET_ALTERNATE, GET_ALTERNATE, ALTERNATE_STATUS = 9, 10, 11
START_INTERRUPTS, STOP_INTERRUPTS, INTERRUPTS_STATUS = 15, 16, 17
CONTROL, BULK, INTERRUPT = 100, 101, 103
# What both sides must know at an XHCI controller: a device's version, packet sizes of endpoints, ids of 64 bits, bulk lengths of 32 bits.
CAPABILITIES = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6
# Headers, before and after both sides said what they know.
HEADER, LONG_HEADER = struct.Struct("<III"), struct.Struct("<IIQ")
SUCCESS, STALL = 0, 4
TYPE_CONTROL, TYPE_BULK, TYPE_INTERRUPT, TYPE_NONE = 0, 2, 3, 255
HIGH_SPEED = 2

STORAGE_IN, STORAGE_OUT, KEYBOARD_IN = 0x81, 0x02, 0x83
SCSI_BULK_ONLY = (0x08, 0x06, 0x50)
BOOT_KEYBOARD = (0x03, 0x01, 0x01)
BLOCK = 512
# USB HID 1.11, appendix B.1: the report of a boot keyboard.
REPORT_DESCRIPTOR = bytes.fromhex(
    "05010906a101050719e029e71500250175019508810295017508810195057501050819012905910295017503910195067508150025650507190029658100c0"
)
ENTER = 0x28
PRESSED_S = 0.02
RELEASED_S = 0.4
PATIENCE_S = 120.0


class Gadget:
    """One device that can be plugged in once. A context manager; at its end it is pulled out."""

    def __init__(self, boot: Boot, name: str, *, image: Path | None = None, keyboard: bool = False) -> None:
        self.name = name
        self._boot = boot
        self._disk = _Disk(image) if image else None
        self._functions = [kind for kind, there in ((SCSI_BULK_ONLY, image), (BOOT_KEYBOARD, keyboard)) if there]
        self._changed = threading.Condition()
        self._configuration = 0
        self._configured = False
        self._described = False
        self._listening = False
        self._header = HEADER
        self._reading: deque[tuple[int, int]] = deque()
        path = boot.machine.folder / f"{name}.sock"
        path.unlink(missing_ok=True)
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(1)
        address = {"type": "unix", "data": {"path": f"/mnt/vm/{path.name}"}}
        boot.command("chardev-add", id=name, backend={"type": "socket", "data": {"addr": address, "server": False}})
        self._link, _ = self._server.accept()
        threading.Thread(target=self._serve, daemon=True).start()
        boot.command("device_add", driver="usb-redir", bus="usb.0", chardev=name, id=name)

    def __enter__(self) -> Gadget:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._server.close()

    def was_in_use(self) -> bool:
        """Whether the machine ever used it: a device that is not let in is never configured."""
        with self._changed:
            return self._configured

    def wait_until_described(self) -> None:
        """Waits until the machine has read what the device is."""
        self._wait(lambda: self._described, "reads the descriptors of")

    def wait_until_in_use(self) -> None:
        """Waits until it is let in."""
        self._wait(lambda: self._configuration != 0, "lets in")

    def wait_until_shut_out(self) -> None:
        """Waits until one that was let in is so no longer."""
        self._wait(lambda: self._configuration == 0, "shuts out")

    def type(self, text: str) -> None:
        """Types letters and the end of a line."""
        self._wait(lambda: self._listening, "listens to")
        for code in [*(4 + ord(letter) - ord("a") for letter in text), ENTER]:
            for pressed in (code, 0):
                report = bytes([0, 0, pressed, 0, 0, 0, 0, 0])
                self._send(INTERRUPT, 0, struct.pack("<BBH", KEYBOARD_IN, SUCCESS, len(report)) + report)
                # Not held down for long, or it repeats; and then as slowly as a machine under emulation can follow.
                time.sleep(PRESSED_S if pressed else RELEASED_S)

    def _wait(self, condition: object, what: str) -> None:
        assert callable(condition)
        with self._changed:
            if not self._changed.wait_for(condition, PATIENCE_S):
                raise BootError(f"{PATIENCE_S:.0f} s passed before the machine {what} {self.name}; see {self._boot.log}")

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            version = b"a device in software".ljust(64, b"\0")
            self._send(HELLO, 0, version + struct.pack("<I", CAPABILITIES))
            while True:
                kind, length, number = self._header.unpack(self._receive(self._header.size))
                self._take(kind, number, self._receive(length))

    def _take(self, kind: int, number: int, body: bytes) -> None:
        if kind == HELLO:
            self._header = LONG_HEADER
            self._introduce()
        elif kind == SET_CONFIGURATION:
            self._note("_configured", self._configured or body[0] != 0)
            self._note("_configuration", body[0])
            self._send(CONFIGURATION_STATUS, number, bytes([SUCCESS, body[0]]))
        elif kind == GET_CONFIGURATION:
            self._send(CONFIGURATION_STATUS, number, bytes([SUCCESS, self._configuration]))
        elif kind in (SET_ALTERNATE, GET_ALTERNATE):
            self._send(ALTERNATE_STATUS, number, bytes([SUCCESS, body[0], 0]))
        elif kind in (START_INTERRUPTS, STOP_INTERRUPTS):
            self._note("_listening", kind == START_INTERRUPTS)
            self._send(INTERRUPTS_STATUS, number, bytes([SUCCESS, body[0]]))
        elif kind == CONTROL:
            self._control(number, body)
        elif kind == BULK:
            self._bulk(number, body)

    def _note(self, what: str, value: object) -> None:
        with self._changed:
            setattr(self, what, value)
            self._changed.notify_all()

    def _introduce(self) -> None:
        kinds, intervals, owners, sizes = bytearray([TYPE_NONE] * 32), bytearray(32), bytearray(32), [0] * 32
        kinds[0] = kinds[16] = TYPE_CONTROL
        sizes[0] = sizes[16] = 64
        for owner, function in enumerate(self._functions):
            for endpoint, kind, size, interval in _endpoints(function):
                place = (endpoint & 0x80) >> 3 | endpoint & 0x0F
                kinds[place], intervals[place], owners[place], sizes[place] = kind, interval, owner, size
        padding = bytes(32 - len(self._functions))
        classes = [bytes(part) + padding for part in zip(*self._functions, strict=True)]
        numbers = bytes(range(len(self._functions))) + padding
        self._send(INTERFACES, 0, struct.pack("<I", len(self._functions)) + numbers + b"".join(classes))
        self._send(ENDPOINTS, 0, bytes(kinds + intervals + owners) + struct.pack("<32H", *sizes))
        self._send(CONNECT, 0, struct.pack("<BBBBHHH", HIGH_SPEED, 0, 0, 0, 0x1209, 0x0001, 0x0100))

    def _control(self, number: int, body: bytes) -> None:
        endpoint, request, kind, _, value, index, length = struct.unpack_from("<BBBBHHH", body)
        answer = self._standard(kind, request, value)
        status = STALL if answer is None else SUCCESS
        # Towards the device, `length` says what was taken; from it, what follows.
        content = (answer or b"")[:length] if kind & 0x80 else b""
        told = len(content) if kind & 0x80 else length
        head = struct.pack("<BBBBHHH", endpoint, request, kind, status, value, index, told if status == SUCCESS else 0)
        self._send(CONTROL, number, head + content)
        if (kind, request, value >> 8) == (0x80, 6, 2):
            self._note("_described", True)

    def _standard(self, kind: int, request: int, value: int) -> bytes | None:
        """What is answered to a control request; nothing if it is not known."""
        match kind, request, value >> 8:
            case 0x80, 6, 1:
                return struct.pack("<BBHBBBBHHHBBBB", 18, 1, 0x0200, 0, 0, 0, 64, 0x1209, 0x0001, 0x0100, 0, 0, 0, 1)
            case 0x80, 6, 2:
                return self._configuration_descriptor()
            case 0x81, 6, 0x22:
                return REPORT_DESCRIPTOR
            case (0x80, 0, _) | (0x81, 0, _) | (0x82, 0, _):
                return bytes(2)
            case 0xA1, 0xFE, _:
                # One logical unit.
                return bytes(1)
            case 0xA1, 1, _:
                return bytes(8)
            case (0x02, 1, _) | (0x21, 0x09, _) | (0x21, 0x0A, _) | (0x21, 0x0B, _) | (0x21, 0xFF, _):
                return b""
        return None

    def _configuration_descriptor(self) -> bytes:
        parts = b""
        for number, function in enumerate(self._functions):
            endpoints = _endpoints(function)
            parts += struct.pack("<BBBBBBBBB", 9, 4, number, 0, len(endpoints), *function, 0)
            if function == BOOT_KEYBOARD:
                parts += struct.pack("<BBHBBBH", 9, 0x21, 0x0111, 0, 1, 0x22, len(REPORT_DESCRIPTOR))
            for endpoint, kind, size, interval in endpoints:
                parts += struct.pack("<BBBBHB", 7, 5, endpoint, kind, size, interval)
        return struct.pack("<BBHBBBBB", 9, 2, 9 + len(parts), len(self._functions), 1, 0, 0x80, 50) + parts

    def _bulk(self, number: int, body: bytes) -> None:
        endpoint, _, low, _, high = struct.unpack_from("<BBHIH", body)
        assert self._disk is not None
        if endpoint == STORAGE_OUT:
            content = body[10:]
            self._disk.take(content)
            self._answer_bulk(number, endpoint, len(content), b"")
        else:
            self._reading.append((number, high << 16 | low))
        while self._reading and self._disk.has_something():
            number, length = self._reading.popleft()
            content = self._disk.give(length)
            self._answer_bulk(number, STORAGE_IN, len(content), content)

    def _answer_bulk(self, number: int, endpoint: int, length: int, content: bytes) -> None:
        head = struct.pack("<BBHIH", endpoint, SUCCESS, length & 0xFFFF, 0, length >> 16)
        self._send(BULK, number, head + content)

    def _send(self, kind: int, number: int, body: bytes) -> None:
        self._link.sendall(self._header.pack(kind, len(body), number) + body)

    def _receive(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            part = self._link.recv(length - len(received))
            if not part:
                raise EOFError
            received += part
        return received


def _endpoints(function: tuple[int, int, int]) -> list[tuple[int, int, int, int]]:
    """Address, type, packet size and interval of each."""
    if function == BOOT_KEYBOARD:
        return [(KEYBOARD_IN, TYPE_INTERRUPT, 8, 7)]
    return [(STORAGE_IN, TYPE_BULK, 512, 0), (STORAGE_OUT, TYPE_BULK, 512, 0)]


class _Disk:
    """Mass storage, bulk-only (USB mass storage class, bulk-only transport 1.0), with as many SCSI commands as a disk needs."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._blocks = image.stat().st_size // BLOCK
        self._out: deque[bytes] = deque()
        # While data comes: where it goes, how much is left, and the end of the command.
        self._place = 0
        self._left = 0
        self._status = b""

    def has_something(self) -> bool:
        """Whether there is something to be read."""
        return bool(self._out)

    def give(self, length: int) -> bytes:
        """The next transfer; one that is longer than asked for goes on in the next."""
        content = self._out.popleft()
        if len(content) > length:
            self._out.appendleft(content[length:])
        return content[:length]

    def take(self, content: bytes) -> None:
        """A command, or data for the one before."""
        if self._left:
            with self._image.open("r+b") as file:
                file.seek(self._place)
                file.write(content[: self._left])
            self._place += len(content)
            self._left -= min(self._left, len(content))
            if not self._left:
                self._out.append(self._status)
            return
        signature, tag, wanted, inwards, _, size = struct.unpack_from("<IIIBBB", content)
        if signature != 0x43425355:
            raise BootError("no command block: the machine speaks another protocol to the stick")
        self._command(tag, wanted, bool(inwards & 0x80), content[15 : 15 + size])

    def _command(self, tag: int, wanted: int, inwards: bool, command: bytes) -> None:
        answer = self._answer(command)
        given = (answer or b"")[:wanted]
        failed = answer is None
        rest = wanted - len(given) if inwards or failed else 0
        self._status = struct.pack("<IIIB", 0x53425355, tag, rest, int(failed))
        if command[0] == 0x2A and not failed:
            place, count = struct.unpack_from(">IxH", command, 2)
            self._place, self._left = place * BLOCK, count * BLOCK
            return
        if inwards and wanted:
            # A short packet, be it empty, ends what is less than wanted.
            self._out.append(given)
        self._out.append(self._status)

    def _answer(self, command: bytes) -> bytes | None:
        match command[0]:
            case 0x12:
                return bytes([0, 0x80, 6, 2, 31, 0, 0, 0]) + b"SOFTWARESTICK           1.0 "
            case 0x03:
                return bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0])
            case 0x25:
                return struct.pack(">II", self._blocks - 1, BLOCK)
            case 0x1A:
                return bytes([3, 0, 0, 0])
            case 0x28:
                place, count = struct.unpack_from(">IxH", command, 2)
                with self._image.open("rb") as file:
                    file.seek(place * BLOCK)
                    return file.read(count * BLOCK)
            case 0x00 | 0x1B | 0x1E | 0x2A | 0x35:
                return b""
        return None
