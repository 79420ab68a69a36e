"""The officers' desk: what is made with `sallyctl` before anybody goes to a machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from build.tree import Mount, Tree

from .machine import BootError

DOCUMENT = """\
serial = 1
server_name = "{enclave}"
allow_software_keys = true

[tls]
names = ["localhost"]

[officers]
trusted_keys = ["{officer}"]
provision_approvals = 1
"""


class Desk:
    """A folder, and `sallyctl` as the image has it: it runs in the tree of tools, as this machine may have older libraries."""

    def __init__(self, tools: Tree, sallyctl: Path, folder: Path, enclave: str) -> None:
        self._tools = tools
        self._mounts = [Mount(sallyctl, "sallyctl"), Mount(folder, "desk", writable=True)]
        self._folder = folder
        self._enclave = enclave

    def document(self) -> tuple[Path, Path, str]:
        """Makes an officer's key, a provisioning document and its approval; returns both files and the code for the console."""
        token, box = self._folder / "officer.toml", self._folder / "box.toml"
        token.write_text('kind = "software"\npath = "/mnt/desk/officer.key"\n', encoding="utf-8")
        software = ["--token", "/mnt/desk/officer.toml", "--allow-software-keys"]
        made = self.sallyctl(["ceremony", "officer-key", "--enclave", self._enclave, *software])
        officer = _found(r"^public key +(\S+)$", made)
        box.write_text(DOCUMENT.format(enclave=self._enclave, officer=officer), encoding="utf-8")
        signed = self.sallyctl(["provision", "sign", "/mnt/desk/box.toml", *software, "--out", "/mnt/desk/box.approval"])
        return box, self._folder / "box.approval", _found(r"^(\d{4}(?: \d{4})+)$", signed)

    def sallyctl(self, arguments: list[str]) -> str:
        """Runs `sallyctl` at the desk, whose folder it sees as `/mnt/desk`; returns what it printed."""
        order = self._tools.command(["/mnt/sallyctl", *arguments], self._mounts)
        done = subprocess.run(order, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BootError(f"sallyctl {' '.join(arguments[:2])}: {done.stderr.strip()}")
        return done.stdout


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if not found:
        raise BootError(f"nothing like {pattern!r} in {text!r}")
    return found[1]
