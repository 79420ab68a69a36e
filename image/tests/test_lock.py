"""Lock files are read as they are written, and nothing else is taken for one."""

import datetime
import unittest

from build import lock

DATE = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
BASE = lock.Package("base-files", "13.8", "amd64", "a" * 64, 73000, "pool/main/b/base-files/base-files_13.8_amd64.deb")
LIBC = lock.Package("libc6", "2.41-12", "amd64", "b" * 64, 2800000, "pool/main/g/glibc/libc6_2.41-12_amd64.deb")


class Locks(unittest.TestCase):
    """`parse` and `text` are each other's opposite."""

    def test_what_is_written_is_read(self) -> None:
        text = lock.Lock(DATE, (LIBC, BASE)).text()
        read = lock.parse(text, "root.lock")
        self.assertEqual(read, lock.Lock(DATE, (BASE, LIBC)))
        self.assertEqual(read.text(), text)
        self.assertEqual(read.epoch, 1767323045)
        self.assertEqual(read.package("libc6"), LIBC)

    def test_refused(self) -> None:
        good = lock.Lock(DATE, (BASE,)).text()
        row = good.splitlines()[-1]
        cases = {
            "no date": good.replace("date ", "# "),
            "no packages": good.replace(row, ""),
            "a package twice": good + row,
            "a short hash": good.replace("a" * 64, "a" * 63),
            "a size that is none": good.replace("73000", "-1"),
            "a field too many": good.replace("amd64 ", "amd64 more ", 1),
        }
        for name, text in cases.items():
            with self.subTest(name), self.assertRaises(lock.LockError):
                lock.parse(text, "root.lock")

    def test_a_package_that_is_not_locked_is_named(self) -> None:
        with self.assertRaisesRegex(lock.LockError, "bash is not in the lock"):
            lock.Lock(DATE, (BASE,)).package("bash")
