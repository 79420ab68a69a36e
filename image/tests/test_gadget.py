"""A stick in software does what one of hardware does."""

import socket
import struct
import tempfile
import types
import unittest
from pathlib import Path

from boot import gadget


def command(tag: int, wanted: int, code: bytes, *, inwards: bool) -> bytes:
    """A command block wrapper."""
    return struct.pack("<IIIBBB", 0x43425355, tag, wanted, 0x80 if inwards else 0, 0, len(code)) + code.ljust(16, b"\0")


class Disk(unittest.TestCase):
    """Bulk-only transport, as the host sees it."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.image = Path(folder.name) / "stick"
        self.image.write_bytes(bytes(64 * gadget.BLOCK))
        self.disk = gadget._Disk(self.image)

    def status(self) -> tuple[int, int, int]:
        signature, tag, rest, failed = struct.unpack("<IIIB", self.disk.give(512))
        self.assertEqual(signature, 0x53425355)
        return tag, rest, failed

    def test_what_is_written_is_read_back(self) -> None:
        content = bytes(range(256)) * 4
        self.disk.take(command(1, len(content), struct.pack(">BxIxHx", 0x2A, 3, 2), inwards=False))
        self.assertFalse(self.disk.has_something(), "the status comes after the data")
        self.disk.take(content[:512])
        self.disk.take(content[512:])
        self.assertEqual(self.status(), (1, 0, 0))
        self.assertEqual(self.image.read_bytes()[3 * 512 : 5 * 512], content)
        self.disk.take(command(2, len(content), struct.pack(">BxIxHx", 0x28, 3, 2), inwards=True))
        self.assertEqual(self.disk.give(512) + self.disk.give(512), content)
        self.assertEqual(self.status(), (2, 0, 0))

    def test_an_unknown_command_fails_with_a_status(self) -> None:
        self.disk.take(command(7, 36, b"\xa3", inwards=True))
        self.assertEqual(self.disk.give(512), b"")
        self.assertEqual(self.status(), (7, 36, 1))

    def test_the_size_is_told(self) -> None:
        self.disk.take(command(8, 8, b"\x25", inwards=True))
        self.assertEqual(struct.unpack(">II", self.disk.give(8)), (63, 512))


class FakeQemu:
    """The other end of the redirection, as QEMU would be; answers what a monitor is asked by connecting."""

    def __init__(self, folder: Path) -> None:
        self.machine = types.SimpleNamespace(folder=folder)
        self.log = folder / "serial.log"
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(10)
        self.ordered: list[str] = []
        self.header = gadget.HEADER

    def command(self, name: str, **arguments: object) -> None:
        self.ordered.append(name)
        if name == "chardev-add":
            self.link.connect(str(self.machine.folder / f"{arguments['id']}.sock"))

    def send(self, kind: int, number: int, body: bytes) -> None:
        self.link.sendall(self.header.pack(kind, len(body), number) + body)

    def receive(self) -> tuple[int, int, bytes]:
        kind, length, number = self.header.unpack(self._read(self.header.size))
        return kind, number, self._read(length)

    def _read(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            received += self.link.recv(length - len(received))
        return received

    def control(self, kind: int, request: int, value: int, length: int) -> tuple[int, bytes]:
        """A control request; answers status and data."""
        self.send(gadget.CONTROL, 5, struct.pack("<BBBBHHH", kind & 0x80, request, kind, 0, value, 0, length))
        answered, number, body = self.receive()
        assert (answered, number) == (gadget.CONTROL, 5)
        return body[3], body[10:]


class Redirection(unittest.TestCase):
    """What a machine learns of the device, and what the device learns of the machine."""

    def plugged(self, *, keyboard: bool) -> tuple[FakeQemu, gadget.Gadget]:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        image = Path(folder.name) / "stick"
        image.write_bytes(bytes(64 * gadget.BLOCK))
        qemu = FakeQemu(Path(folder.name))
        self.addCleanup(qemu.link.close)
        device = gadget.Gadget(qemu, "device", image=image, keyboard=keyboard)  # type: ignore[arg-type]
        self.addCleanup(device.__exit__, None, None, None)
        self.assertEqual(qemu.ordered, ["chardev-add", "device_add"])
        kind, _, body = qemu.receive()
        self.assertEqual((kind, len(body)), (gadget.HELLO, 68))
        qemu.send(gadget.HELLO, 0, bytes(64) + struct.pack("<I", 0xFF))
        qemu.header = gadget.LONG_HEADER
        return qemu, device

    def test_both_in_one_are_told_as_such(self) -> None:
        qemu, device = self.plugged(keyboard=True)
        kind, _, body = qemu.receive()
        self.assertEqual((kind, len(body), body[0]), (gadget.INTERFACES, 132, 2))
        self.assertEqual((body[36:38], body[68:70], body[100:102]), (b"\x08\x03", b"\x06\x01", b"\x50\x01"))
        kind, _, body = qemu.receive()
        self.assertEqual((kind, len(body)), (gadget.ENDPOINTS, 160))
        self.assertEqual((body[17], body[2], body[19]), (gadget.TYPE_BULK, gadget.TYPE_BULK, gadget.TYPE_INTERRUPT))
        self.assertEqual(qemu.receive()[0], gadget.CONNECT)
        status, told = qemu.control(0x80, 6, 0x0200, 255)
        self.assertEqual((status, told[4], struct.unpack_from("<H", told, 2)[0]), (gadget.SUCCESS, 2, len(told)))
        device.wait_until_described()
        self.assertFalse(device.was_in_use())
        self.assertEqual(qemu.control(0x80, 6, 0x0600, 10), (gadget.STALL, b""))

    def test_one_that_is_let_in_is_used(self) -> None:
        qemu, device = self.plugged(keyboard=False)
        for expected in (gadget.INTERFACES, gadget.ENDPOINTS, gadget.CONNECT):
            self.assertEqual(qemu.receive()[0], expected)
        qemu.send(gadget.SET_CONFIGURATION, 9, b"\x01")
        self.assertEqual(qemu.receive(), (gadget.CONFIGURATION_STATUS, 9, b"\0\x01"))
        device.wait_until_in_use()
        # A read that waits for its command.
        qemu.send(gadget.BULK, 10, struct.pack("<BBHIH", gadget.STORAGE_IN, 0, 8, 0, 0))
        asked = command(1, 8, b"\x25", inwards=True)
        qemu.send(gadget.BULK, 11, struct.pack("<BBHIH", gadget.STORAGE_OUT, 0, len(asked), 0, 0) + asked)
        answers = {number: body for _, number, body in (qemu.receive(), qemu.receive())}
        self.assertEqual(answers[11], struct.pack("<BBHIH", gadget.STORAGE_OUT, 0, len(asked), 0, 0))
        self.assertEqual(answers[10][10:], struct.pack(">II", 63, 512))
        qemu.send(gadget.SET_CONFIGURATION, 12, b"\0")
        device.wait_until_shut_out()
        self.assertTrue(device.was_in_use())
