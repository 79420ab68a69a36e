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
        self.folder = folder
        self._enclave = enclave

    def document(self) -> tuple[Path, Path, str]:
        """Makes an officer's key, a provisioning document and its approval; returns both files and the code for the console."""
        token, box = self.folder / "officer.toml", self.folder / "box.toml"
        token.write_text('kind = "software"\npath = "/mnt/desk/officer.key"\n', encoding="utf-8")
        software = ["--token", "/mnt/desk/officer.toml", "--allow-software-keys"]
        made = self.sallyctl(["ceremony", "officer-key", "--enclave", self._enclave, *software])
        officer = _found(r"^public key +(\S+)$", made)
        box.write_text(DOCUMENT.format(enclave=self._enclave, officer=officer), encoding="utf-8")
        signed = self.sallyctl(["provision", "sign", "/mnt/desk/box.toml", *software, "--out", "/mnt/desk/box.approval"])
        return box, self.folder / "box.approval", _found(r"^(\d{4}(?: \d{4})+)$", signed)

    def roster(self, serial: int, people: list[str]) -> Path:
        """Makes and signs a roster of these people; needs the officer of `document`."""
        (self.folder / "people.csv").write_text("localpart\n" + "".join(f"{name}\n" for name in people), encoding="utf-8")
        numbered = ["--enclave", self._enclave, "--serial", str(serial)]
        self.sallyctl(["roster", "make", "/mnt/desk/people.csv", *numbered, "--out", f"/mnt/desk/{serial}.roster"])
        signed = f"{serial}.snr"
        software = ["--token", "/mnt/desk/officer.toml", "--allow-software-keys"]
        self.sallyctl(["roster", "sign", f"/mnt/desk/{serial}.roster", *software, "--out", f"/mnt/desk/{signed}"])
        return self.folder / signed

    def lay(self, path: Path) -> str:
        """Lays a file on the desk; returns its path there."""
        subprocess.run(["cp", "--reflink=auto", path, self.folder / path.name], check=True)
        return f"/mnt/desk/{path.name}"

    def release_key(self) -> list[str]:
        """Makes a release key that no box believes; returns how `sallyctl update make` is told to sign with it."""
        (self.folder / "release.toml").write_text('kind = "software"\npath = "/mnt/desk/release.key"\n', encoding="utf-8")
        software = ["--token", "/mnt/desk/release.toml", "--allow-software-keys"]
        self.sallyctl(["ceremony", "release-key", *software])
        return software

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
