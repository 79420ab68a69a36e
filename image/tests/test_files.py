"""A tree has what its list names and what that is linked to, and nothing else."""

import os
import shutil
import struct
import tempfile
import unittest
from pathlib import Path

from build import checks, elf, modules
from build.files import Allowed, BuildError

UNITS = "usr/lib/systemd/system"


class Trees(unittest.TestCase):
    """Allow-lists over a small tree."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.source, self.made = Path(folder.name) / "source", Path(folder.name) / "made"
        self.made.mkdir()
        for name in ("usr/bin/tool", "usr/bin/other", "usr/share/doc/tool/README", f"{UNITS}/a.service", f"{UNITS}/b@.service"):
            path = self.source / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("", encoding="utf-8")
        (self.source / "usr/bin/alias").symlink_to("tool")

    def found(self) -> set[str]:
        return {str(path.relative_to(self.made)) for path in self.made.rglob("*") if path.is_file()}

    def test_only_what_is_listed(self) -> None:
        Allowed([self.source], self.made).add(["usr/bin/tool"])
        self.assertEqual(self.found(), {"usr/bin/tool"})

    def test_a_link_brings_what_it_leads_to(self) -> None:
        Allowed([self.source], self.made).add(["usr/bin/al*"])
        self.assertEqual(self.found(), {"usr/bin/alias", "usr/bin/tool"})

    def test_what_no_package_has_is_an_error(self) -> None:
        for entry in ("usr/bin/absent", "usr/lib/*.so", "dlopen libabsent.so.1"):
            with self.subTest(entry), self.assertRaises(BuildError):
                Allowed([self.source], self.made).add([entry])

    def test_wants(self) -> None:
        allowed = Allowed([self.source], self.made)
        allowed.add([f"{UNITS}/*"])
        wants = self.made.parent / "wants.list"
        wants.write_text("x.target: a.service b@tty1.service\ny.target! a.service\ndefault.target = a.service\n", encoding="utf-8")
        allowed.wants(wants)
        links = {str(path.relative_to(self.made / UNITS)): os.readlink(path) for path in (self.made / UNITS).rglob("*") if path.is_symlink()}
        self.assertEqual(links["x.target.wants/a.service"], "../a.service")
        self.assertEqual(links["x.target.wants/b@tty1.service"], "../b@.service")
        self.assertEqual(links["y.target.requires/a.service"], "../a.service")
        self.assertEqual(links["default.target"], "a.service")
        wants.write_text("x.target: absent.service\n", encoding="utf-8")
        with self.assertRaisesRegex(BuildError, "absent.service"):
            allowed.wants(wants)

    def test_strangers_are_found(self) -> None:
        cases = {
            "usr/bin/bash": ("", 0o755, "must not be there"),
            "usr/sbin/agetty": ("", 0o755, "must not be there"),
            "usr/bin/script": ("#!/bin/sh\n", 0o755, "is a script"),
            "usr/bin/mount": ("", 0o4755, "more rights"),
            "usr/lib/open": ("", 0o666, "written by everybody"),
            f"{UNITS}/c.service": ("[Service]\nExecStart=-/usr/bin/absent --now\n", 0o644, "starts /usr/bin/absent"),
        }
        for name, (text, mode, expected) in cases.items():
            with self.subTest(name):
                shutil.rmtree(self.made)
                path = self.made / name
                path.parent.mkdir(parents=True)
                path.write_text(text, encoding="utf-8")
                path.chmod(mode)
                with self.assertRaisesRegex(BuildError, expected):
                    checks.initrd(self.made)


class Elf(unittest.TestCase):
    """What programs of this machine are linked to."""

    def test_a_program(self) -> None:
        program = Path("/proc/self/exe").resolve()
        self.assertTrue(any(name.startswith("libc.so") for name in elf.needed(program)))
        self.assertRegex(elf.interpreter(program) or "", r"^/lib64/ld-linux")

    def test_any_other_file(self) -> None:
        self.assertEqual((elf.needed(Path(__file__)), elf.interpreter(Path(__file__))), ([], None))


class Modules(unittest.TestCase):
    """What a kernel module says of itself."""

    def test_dependencies(self) -> None:
        content = struct.pack("<I", 7) + b"\0license=GPL\0depends=mbcache,jbd2\0softdep=pre: crc32c\0intree=Y\0"
        self.assertEqual(modules.information(content), {"depends": ["mbcache,jbd2"], "softdep": ["pre: crc32c"]})
