"""Puts files into an image with an empty exFAT volume (Microsoft's specification, version 1.00): no tool of the tree does.

Everything lies side by side (`NoFatChain`), so that the table of clusters stays as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from .machine import BootError

FOLDER, FILE = 0x10, 0x20
BITMAP = 0x81
SLOT = 32
NAME_UNITS = 15

Tree = dict[str, "Tree | bytes"]


def fill(image: Path, files: Mapping[str, bytes]) -> None:
    """Puts files into folders that are made, by their names."""
    tree: Tree = {}
    for name, content in files.items():
        *folders, last = name.split("/")
        at = tree
        for folder in folders:
            inner = at.setdefault(folder, {})
            if isinstance(inner, bytes):
                raise BootError(f"{folder} is a file and a folder")
            at = inner
        at[last] = content
    volume = bytearray(image.read_bytes())
    Volume(volume).fill(tree)
    image.write_bytes(volume)


class Volume:
    """A volume over all of the bytes."""

    def __init__(self, volume: bytearray) -> None:
        self._volume = volume
        heap, _, root = struct.unpack_from("<III", volume, 88)
        sector, cluster = 1 << volume[108], 1 << volume[109]
        self._cluster = sector * cluster
        self._heap = heap * sector
        self._root = self._place(root)
        bitmap = next(slot for slot in range(self._root, self._root + self._cluster, SLOT) if volume[slot] == BITMAP)
        (first,) = struct.unpack_from("<I", volume, bitmap + 20)
        self._bitmap = self._place(first)

    def fill(self, tree: Tree) -> None:
        """Puts a tree into the root."""
        end = next(slot for slot in range(self._root, self._root + self._cluster, SLOT) if self._volume[slot] == 0)
        entries = self._entries(tree)
        if end + len(entries) >= self._root + self._cluster:
            raise BootError("the root is full")
        self._volume[end : end + len(entries)] = entries

    def _entries(self, tree: Tree) -> bytes:
        entries = b""
        for name, content in tree.items():
            if isinstance(content, bytes):
                entries += _entry(name, FILE, self._put(content), len(content))
            else:
                inner = self._entries(content).ljust(self._cluster, b"\0")
                entries += _entry(name, FOLDER, self._put(inner), len(inner))
        return entries

    def _put(self, content: bytes) -> int:
        """Puts content into free clusters side by side; returns the number of the first."""
        count = -(-len(content) // self._cluster)
        first = 2
        while self._taken(first):
            first += 1
        for cluster in range(first, first + count):
            if self._taken(cluster):
                raise BootError("the volume is in pieces")
            self._volume[self._bitmap + (cluster - 2) // 8] |= 1 << (cluster - 2) % 8
        place = self._place(first)
        self._volume[place : place + len(content)] = content
        return first

    def _taken(self, cluster: int) -> bool:
        return bool(self._volume[self._bitmap + (cluster - 2) // 8] >> (cluster - 2) % 8 & 1)

    def _place(self, cluster: int) -> int:
        return self._heap + (cluster - 2) * self._cluster


def _entry(name: str, attributes: int, first: int, size: int) -> bytes:
    """A file's set of entries: file, stream extension, name."""
    units = name.encode("utf-16le")
    pieces = [units[at : at + 2 * NAME_UNITS] for at in range(0, len(units), 2 * NAME_UNITS)]
    head = bytearray(struct.pack("<BBHH26x", 0x85, 1 + len(pieces), 0, attributes))
    stream = struct.pack("<BBxBHxxQxxxxIQ", 0xC0, 3, len(name), _sum(name.upper().encode("utf-16le")), size, first, size)
    names = b"".join(struct.pack("<BB30s", 0xC1, 0, piece) for piece in pieces)
    checked = bytes(head[:2]) + bytes(head[4:]) + stream + names
    struct.pack_into("<H", head, 2, _sum(checked))
    return bytes(head) + stream + names


def _sum(content: bytes) -> int:
    """The sum over sets of entries, and over names."""
    total = 0
    for byte in content:
        total = ((total << 15 | total >> 1) + byte) & 0xFFFF
    return total
