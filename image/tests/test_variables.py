"""What firmware takes: signature lists, hashes of boot programs, and a profile without a signature for the TPM."""

import hashlib
import struct
import tempfile
import unittest
from pathlib import Path

from build import signing, variables
from build.files import BuildError

SECTIONS_AT = 0x200


def program(sections: list[tuple[str, bytes]], signature: bytes = b"") -> bytes:
    """A boot program of 64 bits with these sections, and a signature after them."""
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    content, table = b"", b""
    for name, data in sections:
        table += struct.pack("<8sIIII16x", name.encode(), len(data), 0x1000, len(data), SECTIONS_AT + len(content))
        content += data
    end = SECTIONS_AT + len(content)
    if signature:
        struct.pack_into("<II", optional, 112 + 4 * 8, end, len(signature))
    head = bytearray(b"MZ".ljust(0x40, b"\0"))
    struct.pack_into("<I", head, 0x3C, 0x40)
    head += b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, len(sections), 0, 0, 0, len(optional), 0) + optional + table
    return bytes(head).ljust(SECTIONS_AT, b"\0") + content + signature


class Digest(unittest.TestCase):
    def test_a_signature_does_not_count(self) -> None:
        sections = [(".linux", b"kernel!!")]
        unsigned, signed = program(sections), bytearray(program(sections, b"signature"))
        checksum = 0x40 + 24 + 64
        signed[checksum : checksum + 4] = b"sum!"
        self.assertEqual(variables.digest(unsigned), variables.digest(bytes(signed)))
        self.assertNotEqual(variables.digest(unsigned), variables.digest(program([(".linux", b"Kernel!!")])))

    def test_an_end_is_filled_up(self) -> None:
        short, full = program([(".linux", b"kernel")]), program([(".linux", b"kernel\0\0")])
        # The size that the table says differs; what is hashed of the contents does not.
        self.assertEqual(len(full) - len(short), 2)
        self.assertEqual(variables.digest(short[: SECTIONS_AT + 6]), variables.digest(short + b"\0\0"))

    def test_other_files_have_none(self) -> None:
        with self.assertRaises(BuildError):
            variables.digest(b"MZ".ljust(0x400, b"\0"))


class Lists(unittest.TestCase):
    def test_hashes_stand_in_one_list(self) -> None:
        digests = [hashlib.sha256(word).digest() for word in (b"a", b"b")]
        found = variables.hashes(digests)
        size, header, entry = struct.unpack_from("<III", found, 16)
        self.assertEqual((found[:16], size, header, entry), (variables.SHA256.bytes_le, len(found), 0, 48))
        self.assertEqual([found[28 + 16 : 28 + 48], found[28 + 48 + 16 :]], digests)

    def test_a_certificate_is_its_bytes(self) -> None:
        pem = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "a.crt"
            path.write_text(pem, encoding="ascii")
            found = variables.certificates([path, path])
        self.assertEqual(found[44:47], b"\0\1\2")
        self.assertEqual(len(found), 2 * 47)


class Profiles(unittest.TestCase):
    def test_the_last_signature_is_emptied(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "uki.efi"
            path.write_bytes(program([(".pcrsig", b'{"a":1}'), (".cmdline", b"quiet"), (".pcrsig", b'{"b":2}')]))
            signing.forget_last(path, ".pcrsig")
            self.assertEqual(path.read_bytes(), program([(".pcrsig", b'{"a":1}'), (".cmdline", b"quiet"), (".pcrsig", b"{}     ")]))
            self.assertEqual(signing.section(path, ".pcrsig"), b'{"a":1}')
            path.write_bytes(program([(".pcrsig", b'{"a":1}')]))
            with self.assertRaises(BuildError):
                signing.forget_last(path, ".pcrsig")


if __name__ == "__main__":
    unittest.main()
