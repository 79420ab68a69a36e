"""What an ELF file needs to run."""

from __future__ import annotations

import struct
from pathlib import Path

_LOAD, _DYNAMIC, _INTERPRETER = 1, 2, 3
_NEEDED, _STRINGS = 1, 5


def needed(path: Path) -> list[str]:
    """The names of the libraries that a program or library is linked to; none for any other file."""
    data = _read(path)
    dynamic = next((part for part in _parts(data) if part[0] == _DYNAMIC), None)
    if dynamic is None:
        return []
    entries = list(struct.iter_unpack("<qQ", data[dynamic[2] : dynamic[2] + dynamic[3]]))
    strings = next((value for tag, value in entries if tag == _STRINGS), None)
    if strings is None:
        return []
    loads = [part for part in _parts(data) if part[0] == _LOAD]
    base = next(strings - address + offset for _, address, offset, size in loads if address <= strings < address + size)
    starts = [base + value for tag, value in entries if tag == _NEEDED]
    return [data[start : data.index(b"\0", start)].decode() for start in starts]


def interpreter(path: Path) -> str | None:
    """The program that loads a program: the dynamic linker."""
    data = _read(path)
    for kind, _, offset, size in _parts(data):
        if kind == _INTERPRETER:
            return data[offset : offset + size].rstrip(b"\0").decode()
    return None


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return path.read_bytes() if file.read(5) == b"\x7fELF\x02" else b""


def _parts(data: bytes) -> list[tuple[int, int, int, int]]:
    """Kind, address, offset and size of each segment."""
    if not data:
        return []
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    rows = (struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(count))
    return [(kind, address, offset, length) for kind, _, offset, address, _, length in rows]
