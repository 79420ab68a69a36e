"""What apt prints becomes locked packages."""

import unittest

from build import resolve

STANZA = """\
Package: libc6
Architecture: amd64
Version: 2.41-12
Depends: libgcc-s1
Filename: pool/main/g/glibc/libc6_2.41-12_amd64.deb
Size: 2847332
SHA256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
Description: GNU C Library
 Version: this is a continued line, not a field
"""


class Resolve(unittest.TestCase):
    """Stanzas and sources."""

    def test_a_stanza_is_a_package(self) -> None:
        package = resolve.package_of(STANZA)
        self.assertEqual((package.name, package.version, package.size), ("libc6", "2.41-12", 2847332))
        self.assertTrue(package.path.endswith("libc6_2.41-12_amd64.deb"))

    def test_security_updates_are_asked_where_the_machine_has_them(self) -> None:
        plain = resolve.sources_text({"Debian": "http://mirror.example/debian"})
        both = resolve.sources_text({"Debian": "http://a.example/d", "Debian-Security": "http://b.example/s"})
        self.assertEqual(plain.count("URIs:"), 1)
        self.assertIn("Suites: trixie-security\n", both)
        self.assertEqual(both.count(f"Signed-By: {resolve.KEYRING}"), 2)
