"""The officers' desk: what is made with `sallyctl` before anybody goes to a machine."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
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

[token]
{token}
"""
# Keys in a file of the box.
FILE = 'kind = "software"'

SOFTWARE = "--allow-software-keys"


class Desk:
    """A folder, and `sallyctl` as the image has it: it runs in the tree of tools, as this machine may have older libraries."""

    def __init__(self, tools: Tree, sallyctl: Path, folder: Path, enclave: str) -> None:
        self._tools = tools
        self._mounts = [Mount(sallyctl, "sallyctl"), Mount(folder, "desk", writable=True)]
        self.folder = folder
        self.enclave = enclave

    def document(self, token: str = FILE) -> tuple[Path, Path, str]:
        """Makes an officer's key, a provisioning document with this token, and its approval; returns both files and the code for the console."""
        officer = self._key("officer", "officer-key")
        box = self.write("box.toml", DOCUMENT.format(enclave=self.enclave, officer=officer, token=token))
        signed = self._signed(["provision", "sign", "/mnt/desk/box.toml"], "officer", "box.approval")
        return box, self.folder / "box.approval", found(r"^(\d{4}(?: \d{4})+)$", signed)

    def lay(self, path: Path) -> str:
        """Lays a file on the desk; returns its path there."""
        subprocess.run(["cp", "--reflink=auto", path, self.folder / path.name], check=True)
        return f"/mnt/desk/{path.name}"

    def release_key(self) -> list[str]:
        """Makes a release key that no box believes; returns how `sallyctl update make` is told to sign with it."""
        self.write("release.toml", 'kind = "software"\npath = "/mnt/desk/release.key"\n')
        software = ["--token", "/mnt/desk/release.toml", SOFTWARE]
        self.sallyctl(["ceremony", "release-key", *software])
        return software

    def roster(self, serial: int, people: Sequence[str]) -> Path:
        """Makes a roster and has the officer sign it."""
        lines = "".join(f"{person}\n" for person in ("localpart", *people))
        # `sallyctl` replaces nothing.
        (self.folder / "people.json").unlink(missing_ok=True)
        self.write("people.csv", lines)
        made = ["roster", "make", "/mnt/desk/people.csv", "--enclave", self.enclave, "--serial", str(serial)]
        self.sallyctl([*made, "--out", "/mnt/desk/people.json"])
        self._signed(["roster", "sign", "/mnt/desk/people.json"], "officer", "people.snr")
        return self.folder / "people.snr"

    def order(self, text: str) -> Path:
        """Writes an order for what the box shall put onto a stick."""
        return self.write("box.order", f'enclave = "{self.enclave}"\n{text}\n')

    def card(self, request: bytes, sha256: str) -> Path:
        """Has the enclave root sign the box's keys; the console showed their hash. One officer approves each bundle, in and out."""
        (self.folder / "card.request").write_bytes(request)
        self._key("root", "init-root")
        sign = ["ceremony", "sign-card", "/mnt/desk/card.request", "--request-hash", sha256, "--name", self.enclave, "--serial", "1"]
        self._signed(sign, "root", "own.snc")
        return self.folder / "own.snc"

    def fingerprint(self) -> str:
        """The fingerprint of the own card, as an officer reads it aloud."""
        return self.sallyctl(["card", "fingerprint", "/mnt/desk/own.snc"]).splitlines()[0]

    def approve(self, what: Sequence[str], name: str) -> Path:
        """Has the officer approve something; returns the file of the approval."""
        self._signed(["approve", *what], "officer", name)
        return self.folder / name

    def sallyctl(self, arguments: Sequence[str]) -> str:
        """Runs `sallyctl` at the desk, whose folder it sees as `/mnt/desk`; returns what it printed."""
        order = self._tools.command(["/mnt/sallyctl", *arguments], self._mounts)
        done = subprocess.run(order, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BootError(f"sallyctl {' '.join(arguments[:2])}: {done.stderr.strip()}")
        return done.stdout

    def write(self, name: str, text: str) -> Path:
        """Writes a file on the desk."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def _key(self, who: str, ceremony: str) -> str:
        self.write(f"{who}.toml", f'kind = "software"\npath = "/mnt/desk/{who}.key"\n')
        token = ["--token", f"/mnt/desk/{who}.toml", SOFTWARE]
        return found(r"^public key +(\S+)$", self.sallyctl(["ceremony", ceremony, "--enclave", self.enclave, *token]))

    def _signed(self, command: Sequence[str], who: str, name: str) -> str:
        # `sallyctl` replaces nothing.
        (self.folder / name).unlink(missing_ok=True)
        return self.sallyctl([*command, "--token", f"/mnt/desk/{who}.toml", SOFTWARE, "--out", f"/mnt/desk/{name}"])


def found(pattern: str, text: str) -> str:
    """What stands in a text."""
    match = re.search(pattern, text, re.MULTILINE)
    if not match:
        raise BootError(f"nothing like {pattern!r} in {text!r}")
    return match[1]
