"""Contents of the firmware's variables for Secure Boot, signed so that a firmware takes them: PK, KEK, db, and dbx for what is revoked.

UEFI 2.10, sections 8.2.2 (EFI_VARIABLE_AUTHENTICATION_2) and 32.4 (signature lists). The same keys give the same bytes: the time that a signature is for is the
lock's date, RSA signatures are of PKCS #1 v1.5, and they have no attributes, among them the time of signing.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path

from .files import BuildError
from .signing import OWNER

GLOBAL = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SECURITY = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
# Whose key signs what: the platform key itself and the key exchange keys, these the rest.
SIGNERS = {"PK": "PK", "KEK": "PK", "db": "KEK", "dbx": "KEK"}
VENDORS = {"PK": GLOBAL, "KEK": GLOBAL, "db": SECURITY, "dbx": SECURITY}
X509 = uuid.UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072")
SHA256 = uuid.UUID("c1c41626-504c-4092-aca9-41f936934328")
PKCS7 = uuid.UUID("4aafd29d-68df-49ee-8aa9-347d375665a7")
# Kept without power; for boot programs and for the running system; signed with a time.
ATTRIBUTES = 0x01 | 0x02 | 0x04 | 0x20
APPEND = 0x40
WIN_CERTIFICATE = 0x0200
WIN_CERTIFICATE_GUID = 0x0EF1


def certificates(files: Iterable[Path]) -> bytes:
    """Lists of certificates, one each, as their sizes differ. Each file is in PEM."""
    return b"".join(_list(X509, [der(path.read_text(encoding="ascii"))]) for path in files)


def der(pem: str) -> bytes:
    """A certificate in PEM as its bytes."""
    body = pem.split("-----BEGIN CERTIFICATE-----")[1].split("-----END CERTIFICATE-----")[0]
    return base64.b64decode(body)


def hashes(digests: Iterable[bytes]) -> bytes:
    """A list of SHA-256 hashes of boot programs."""
    return _list(SHA256, list(digests))


def signed(name: str, content: bytes, keys: Path, epoch: int, *, append: bool = False) -> bytes:
    """The content of a variable as it is given to a firmware: replaces what is there, or is appended to it. Runs in a tree that has openssl."""
    attributes = ATTRIBUTES | (APPEND if append else 0)
    time = _time(epoch)
    message = name.encode("utf-16le") + VENDORS[name].bytes_le + struct.pack("<I", attributes) + time + content
    signature = _signature(message, keys / f"{SIGNERS[name]}.crt", keys / f"{SIGNERS[name]}.key")
    certificate = struct.pack("<IHH", 24 + len(signature), WIN_CERTIFICATE, WIN_CERTIFICATE_GUID) + PKCS7.bytes_le + signature
    return time + certificate + content


def digest(program: bytes) -> bytes:
    """The hash by which a firmware knows a boot program, signed or not (Authenticode: all but checksum and signature)."""
    (header,) = struct.unpack_from("<I", program, 0x3C)
    optional = header + 24
    if program[header : header + 4] != b"PE\0\0" or struct.unpack_from("<H", program, optional)[0] != 0x20B:
        raise BuildError("this is no boot program of 64 bits")
    checksum, security = optional + 64, optional + 112 + 4 * 8
    at, size = struct.unpack_from("<II", program, security)
    end = at if size else len(program)
    parts = program[:checksum] + program[checksum + 4 : security] + program[security + 8 : end]
    # A signature begins at a multiple of eight bytes: an unsigned program counts as if it had been filled up.
    return hashlib.sha256(parts + bytes(-end % 8)).digest()


def _list(kind: uuid.UUID, entries: list[bytes]) -> bytes:
    size = 16 + len(entries[0])
    content = b"".join(OWNER.bytes_le + entry for entry in entries)
    return kind.bytes_le + struct.pack("<III", 28 + len(content), 0, size) + content


def _time(epoch: int) -> bytes:
    """EFI_TIME, of which a signature takes the date and the time of day only."""
    at = datetime.datetime.fromtimestamp(epoch, datetime.UTC)
    return struct.pack("<HBBBBBxIhBx", at.year, at.month, at.day, at.hour, at.minute, at.second, 0, 0, 0)


def _signature(message: bytes, certificate: Path, key: Path) -> bytes:
    with tempfile.NamedTemporaryFile() as file:
        file.write(message)
        file.flush()
        order = ["openssl", "smime", "-sign", "-binary", "-noattr", "-md", "sha256", "-outform", "DER"]
        done = subprocess.run([*order, "-signer", certificate, "-inkey", key, "-in", file.name], capture_output=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"openssl: {done.stderr.decode().strip()}")
    return _inner(done.stdout)


def _inner(content_info: bytes) -> bytes:
    """The SignedData of a PKCS #7 file, which is what variables have, without the ContentInfo around it."""
    sequence = _value(content_info, 0x30)
    (length,) = struct.unpack_from("B", sequence, 1)
    return _value(sequence[2 + length :], 0xA0)


def _value(der: bytes, tag: int) -> bytes:
    if der[0] != tag:
        raise BuildError(f"the signature has {der[0]:#x} where {tag:#x} should be")
    if der[1] < 0x80:
        return der[2 : 2 + der[1]]
    count = der[1] & 0x7F
    return der[2 + count : 2 + count + int.from_bytes(der[2 : 2 + count], "big")]
