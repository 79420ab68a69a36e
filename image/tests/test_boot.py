"""What the harness makes of a serial console."""

import unittest
from pathlib import Path

from boot import machine
from boot.scenarios import bench


class Console(unittest.TestCase):
    """Lines as a terminal shows them."""

    def test_codes_are_taken_out(self) -> None:
        raw = b"\x1b[2J\x1b[01;01H\x1b[=3h\x1b[0;32mBdsDxe\x1b[0m: loading\r"
        self.assertNotIn("\x1b", machine._text(raw).replace("\x1b[=3h", ""))
        self.assertIn("BdsDxe: loading", machine._text(raw))

    def test_a_recovery_key_is_found(self) -> None:
        key = "hevddhln-lehridec-ftccregb-dchklvlu-rtrjlbch-lrfjlclv-kfgkjbvj-jlvjcefb"
        found = bench.RECOVERY_KEY.search(f"    {key}  ")
        self.assertEqual(found and found[1], key)
        self.assertIsNone(bench.RECOVERY_KEY.search(key.replace("-jlvjcefb", "")))

    def test_only_files_of_the_machine_are_seen(self) -> None:
        self.assertEqual(machine._inside(Path("/tmp/vm"), Path("/tmp/vm/stick.img")), "/mnt/vm/stick.img")
        with self.assertRaises(ValueError):
            machine._inside(Path("/tmp/vm"), Path("/tmp/other/stick.img"))
