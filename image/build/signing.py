"""Signatures of boot programs, the same each time, and also as files of their own so that others can compare without the keys."""

from __future__ import annotations

import base64
import struct
import subprocess
import uuid
from pathlib import Path

from .files import BuildError

# Who owns the keys in the firmware's variables; a name, not a secret.
OWNER = uuid.UUID("5c1d9a37-24b8-4c56-9ec1-5d6a4e0f7b10")
# The key itself stands at the end of its DER form.
ED25519_BYTES = 32
PCR_KEY_BITS = 2048
NAMES = {"PK": "platform key", "KEK": "key exchange key", "db": "boot programs"}


class Signer:
    """Signs with the key of the firmware's list of allowed programs (`db`), or puts on signatures that a release brought (`made`)."""

    def __init__(self, keys: Path, epoch: int, made: Path | None = None) -> None:
        self._keys = keys
        self._epoch = epoch
        self._made = made

    def sign(self, program: Path, signed: Path, detached: Path) -> None:
        """Writes the signed program, and its signature (PKCS #7, DER). The time in it is the lock's date."""
        certificate, key = self._keys / "db.crt", self._keys / "db.key"
        for path in (signed, detached):
            path.unlink(missing_ok=True)
        if self._made:
            detached.write_bytes(_given(self._made, detached.name))
            attach: list[str | Path] = ["osslsigncode", "attach-signature", "-sigin", detached, "-CAfile", certificate]
            run([*attach, "-in", program, "-out", signed])
            run(["sbverify", "--cert", certificate, signed])
            return
        order = ["osslsigncode", "sign", "-h", "sha256", "-st", str(self._epoch), "-certs", certificate, "-key", key]
        run([*order, "-in", program, "-out", signed])
        run(["osslsigncode", "extract-signature", "-in", signed, "-out", detached])
        run(["sbverify", "--cert", certificate, signed])


def run(command: list[str | Path]) -> None:
    """Runs a tool that talks too much; what it said is shown if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{command[0]} {command[1]}: {done.stdout.strip()} {done.stderr.strip()}")


def section(program: Path, name: str) -> bytes:
    """The content of the first section of this name in a boot program (PE/COFF)."""
    data = program.read_bytes()
    return data[_sections(program, data, name)[0]]


def forget_last(program: Path, name: str) -> None:
    """Empties the last of several sections of signatures of PCR 11, which ukify makes for each profile.

    The TPM gives the key of the data to whatever has such a signature, so a profile that must not have it has none.
    """
    data = bytearray(program.read_bytes())
    *others, last = _sections(program, bytes(data), name)
    if not others:
        raise BuildError(f"{program.name} has one section {name} only")
    data[last] = b"{}".ljust(last.stop - last.start)
    program.write_bytes(data)


def give_first(program: Path, name: str, folder: Path, file: str) -> None:
    """Puts what a release brought into the first section of a name: the signature of PCR 11, which is as long whoever makes it."""
    data = bytearray(program.read_bytes())
    place = _sections(program, bytes(data), name)[0]
    content = _given(folder, file)
    if len(content) != place.stop - place.start:
        raise BuildError(f"{file} does not fit: its key has another length")
    data[place] = content
    program.write_bytes(data)


def passing_key(folder: Path) -> Path:
    """A key for a signature that is replaced at once."""
    key = folder / "passing.key"
    run(["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{PCR_KEY_BITS}", "-out", key])
    return key


def _given(folder: Path, name: str) -> bytes:
    path = folder / name
    if not path.exists():
        raise BuildError(f"the folder of signatures has no {name}: take that of the release of this version")
    return path.read_bytes()


def _sections(program: Path, data: bytes, name: str) -> list[slice]:
    (header,) = struct.unpack_from("<I", data, 0x3C)
    (count,) = struct.unpack_from("<H", data, header + 6)
    (optional,) = struct.unpack_from("<H", data, header + 20)
    places = []
    for index in range(count):
        entry = header + 24 + optional + 40 * index
        found, size, _, stored, offset = struct.unpack_from("<8sIIII", data, entry)
        if found.rstrip(b"\0") == name.encode():
            places.append(slice(offset, offset + min(size, stored)))
    if not places:
        raise BuildError(f"{program.name} has no section {name}")
    return places


def generate(folder: Path) -> None:
    """Makes the keys for tests that are not there: three for Secure Boot, one for what the TPM measures, one for updates. Runs in the tools tree."""
    for name, meaning in NAMES.items():
        if (folder / f"{name}.crt").exists():
            continue
        subject = f"/O=Sallyport TEST KEYS, worthless/CN=Sallyport TEST {meaning}"
        files: list[str | Path] = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"]
        run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-sha256", "-nodes", "-days", "7300", "-subj", subject, *files])
    if not (folder / "pcr.pub").exists():
        run(["openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{PCR_KEY_BITS}", "-out", folder / "pcr.key"])
        run(["openssl", "pkey", "-in", folder / "pcr.key", "-pubout", "-out", folder / "pcr.pub"])
    if not (folder / "update.pub").exists():
        run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", folder / "update.key"])
        show = ["openssl", "pkey", "-in", folder / "update.key", "-pubout", "-outform", "DER"]
        public = subprocess.run(show, capture_output=True, check=True).stdout[-ED25519_BYTES:]
        text = base64.b64encode(public).decode().rstrip("=")
        (folder / "update.pub").write_text(f"# Test keys: worthless.\ned25519:{text}\n", encoding="ascii")
