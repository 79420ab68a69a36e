"""Tests of the choice of tokens, and of vendors' files."""

from __future__ import annotations

import datetime
import hashlib
import tempfile
import unittest
from pathlib import Path

from build import lock, tokens
from build.__main__ import KINDS, LOCKS

DAY = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
SHA256 = hashlib.sha256(b"module").hexdigest()
GOOD = f"hsm.so {SHA256} usr/lib/vendor/hsm.so\nhsm.toml {SHA256} usr/lib/sallyport/tokens/hsm.toml\n"


def package(name: str, version: str = "1") -> lock.Package:
    return lock.Package(name, version, "amd64", "0" * 64, 1, f"pool/{name}.deb")


class Choices(unittest.TestCase):
    def test_what_is_chosen(self) -> None:
        chosen = tokens.parse("tpm2,opensc,tpm2,vendor:/somewhere", KINDS)
        self.assertEqual(chosen.kinds, ("opensc", "tpm2"))
        self.assertEqual(chosen.vendors, (Path("/somewhere"),))
        self.assertEqual(tokens.parse("none", KINDS).kinds, ())
        with self.assertRaisesRegex(lock.LockError, "there is no token paper; there are opensc, softhsm, tpm2"):
            tokens.parse("paper,opensc", KINDS)

    def test_every_kind_has_its_parts(self) -> None:
        for kind in tokens.kinds_in(KINDS):
            self.assertTrue(lock.read(LOCKS / f"token-{kind}.lock").packages)
            self.assertTrue((KINDS / kind / tokens.DESCRIPTIONS / f"{kind}.toml").is_file())
            self.assertEqual(tokens.for_tests(KINDS / kind), [kind] if kind == "softhsm" else [])

    def test_packages_are_of_one_day_and_one_version(self) -> None:
        root = lock.Lock(DAY, (package("libc6"), package("zlib1g")))
        both = tokens.merged(root, {"a": lock.Lock(DAY, (package("libyaml"), package("libc6")))})
        self.assertEqual([one.name for one in both.packages], ["libc6", "libyaml", "zlib1g"])
        for other in (lock.Lock(DAY, (package("libc6", "2"),)), lock.Lock(DAY + datetime.timedelta(1), (package("x"),))):
            with self.assertRaisesRegex(lock.LockError, "make image-lock"):
                tokens.merged(root, {"a": other})


class Vendors(unittest.TestCase):
    def files(self, listed: str, content: bytes = b"module") -> list[tokens.VendorFile]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in ("hsm.so", "hsm.toml"):
                (folder / file).write_bytes(content)
            (folder / tokens.VENDOR_LOCK).write_text(listed, encoding="utf-8")
            return tokens.vendor_files(folder)

    def test_files_are_those_that_the_lock_names(self) -> None:
        self.assertEqual([file.place for file in self.files(GOOD)], ["usr/lib/vendor/hsm.so", "usr/lib/sallyport/tokens/hsm.toml"])

    def test_anything_else_stops_the_build(self) -> None:
        for listed, content, says in [
            (GOOD, b"another", "not the one that vendor.lock names"),
            (GOOD.splitlines()[0], b"module", "describes no token"),
            (GOOD.replace("usr/lib/vendor", "usr/bin"), b"module", "cannot go to"),
            (GOOD.replace("usr/lib/vendor", "usr/lib/../bin"), b"module", "cannot go to"),
            (GOOD.replace("usr/lib/vendor", "/usr/lib"), b"module", "cannot go to"),
            (GOOD.replace("hsm.so ", "../hsm.so "), b"module", "has no file"),
            ("hsm.so usr/lib/hsm.so", b"module", "is not `FILE SHA256 PLACE`"),
        ]:
            with self.subTest(listed=listed), self.assertRaisesRegex(lock.LockError, says):
                self.files(listed, content)
        with tempfile.TemporaryDirectory() as name, self.assertRaisesRegex(lock.LockError, "has no vendor.lock"):
            tokens.vendor_files(Path(name))
