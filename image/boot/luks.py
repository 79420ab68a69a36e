"""What an encrypted partition of a machine that is off tells whoever has keys: with cryptsetup from the tree that images are built with."""

from __future__ import annotations

import subprocess
from pathlib import Path

from build.tree import Mount, Tree

from . import disk
from .machine import BootError

LABEL = "sallyport-data"
# Both copies of the header and all slots (LUKS2, as cryptsetup makes it).
HEADER_BYTES = 16 << 20
# Before that, two copies of a text, of which much is the same for every box: the builder's public key.
SLOTS_AT = 32 << 10
SECTOR = 512
# The superblock of ext4 begins at byte 1024 of the file system, and its magic number at byte 56 of that.
SUPERBLOCK = 1024
MAGIC, MAGIC_AT = b"\x53\xef", 56


def header(image: Path, start: int) -> bytes:
    """The bytes of header and slots."""
    with image.open("rb") as file:
        file.seek(start)
        return file.read(HEADER_BYTES)


def volume_key(tools: Tree, head: bytes, key: str, folder: Path) -> bytes | None:
    """The key of the data, if this recovery key opens this header."""
    (folder / "header").write_bytes(head)
    (folder / "key").write_text(key, encoding="ascii")
    (folder / "volume-key").unlink(missing_ok=True)
    files = ["--volume-key-file", "/mnt/vm/volume-key", "--key-file", "/mnt/vm/key", "/mnt/vm/header"]
    order = ["cryptsetup", "luksDump", "--dump-volume-key", "--batch-mode", *files]
    done = subprocess.run(tools.command(order, [Mount(folder, "vm", writable=True)]), capture_output=True, text=True, check=False)
    return (folder / "volume-key").read_bytes() if done.returncode == 0 else None


def shows_file_system(tools: Tree, image: Path, start: int, key: bytes) -> bool:
    """Whether a volume key makes a file system of what lies in the partition's place."""
    sector = SUPERBLOCK // SECTOR
    with image.open("rb") as file:
        file.seek(start + HEADER_BYTES + SUPERBLOCK)
        stored = file.read(SECTOR)
    decrypt = (
        "import sys; from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes; "
        "key, place, data = (bytes.fromhex(word) for word in sys.argv[1:]); "
        "print(Cipher(algorithms.AES(key), modes.XTS(place)).decryptor().update(data).hex())"
    )
    order = ["python3", "-c", decrypt, key.hex(), sector.to_bytes(16, "little").hex(), stored.hex()]
    done = subprocess.run(tools.command(order), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootError(f"python3: {done.stderr.strip()}")
    return bytes.fromhex(done.stdout)[MAGIC_AT : MAGIC_AT + 2] == MAGIC


def is_gone(image: Path) -> bool:
    """Whether the disk has no data partition."""
    try:
        disk.partition(image, LABEL)
    except BootError:
        return True
    return False
