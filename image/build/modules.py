"""Kernel modules by allow-list, with what they depend on."""

from __future__ import annotations

import lzma
import re
import subprocess
from pathlib import Path

from .files import BuildError

SUFFIX = re.compile(r"\.ko(\.xz)?$")
INDEX = ("modules.builtin", "modules.builtin.modinfo", "modules.order")


class Modules:
    """All modules of a kernel, as its package has them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._paths = {_name(path.name): path for path in sorted((folder / "kernel").rglob("*.ko*"))}
        builtin = (folder / "modules.builtin").read_text(encoding="utf-8").split()
        self._builtin = {_name(Path(path).name) for path in builtin}
        self._contents: dict[str, bytes] = {}

    def install(self, wanted: list[str], destination: Path) -> int:
        """Writes the wanted modules and what they depend on, unpacked: their signatures are inside, and what holds them is packed."""
        chosen: set[str] = set()
        waiting = [name for entry in wanted for name in self._entry(entry)]
        while waiting:
            name = waiting.pop()
            if name in chosen or name in self._builtin:
                continue
            if name not in self._paths:
                raise BuildError(f"the kernel has no module {name}")
            chosen.add(name)
            waiting += self._dependencies(name)
        for name in sorted(chosen):
            relative = self._paths[name].relative_to(self._folder)
            target = destination / relative.with_name(SUFFIX.sub(".ko", relative.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self._content(name))
        for name in INDEX:
            (destination / name).write_bytes((self._folder / name).read_bytes())
        base = str(destination).removesuffix(f"/usr/lib/modules/{destination.name}")
        subprocess.run(["depmod", "-b", base, destination.name], check=True)
        return len(chosen)

    def _entry(self, entry: str) -> list[str]:
        if not entry.endswith("/"):
            return [_name(entry)]
        return [name for name, path in self._paths.items() if str(path).startswith(f"{self._folder}/kernel/{entry}")]

    def _dependencies(self, name: str) -> list[str]:
        fields = information(self._content(name))
        hard = [_name(part) for value in fields.get("depends", []) for part in value.split(",") if part]
        soft = [_name(part) for value in fields.get("softdep", []) for part in value.split() if not part.endswith(":")]
        return hard + [part for part in soft if part in self._paths]

    def _content(self, name: str) -> bytes:
        if name not in self._contents:
            packed = self._paths[name].read_bytes()
            self._contents[name] = lzma.decompress(packed) if self._paths[name].suffix == ".xz" else packed
        return self._contents[name]


def information(module: bytes) -> dict[str, list[str]]:
    """The fields `depends` and `softdep` of a module (section `.modinfo`: texts that end with a zero)."""
    fields: dict[str, list[str]] = {}
    for match in re.finditer(rb"\0(depends|softdep)=([\x20-\x7e]*)(?=\0)", module):
        fields.setdefault(match[1].decode(), []).append(match[2].decode())
    return fields


def _name(file: str) -> str:
    return SUFFIX.sub("", file).replace("-", "_")
