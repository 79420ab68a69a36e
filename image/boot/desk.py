"""The officers' desk: what is made with `sallyctl` before anybody goes to a machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from .machine import BootError

ENCLAVE = "alpha.example"
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


def document(sallyctl: Path, folder: Path) -> tuple[Path, Path, str]:
    """Makes an officer's key, a provisioning document and its approval; returns both files and the code for the console."""
    token, box, approval = folder / "officer.toml", folder / "box.toml", folder / "box.approval"
    token.write_text(f'kind = "software"\npath = "{folder.resolve()}/officer.key"\n', encoding="utf-8")
    software = ["--token", str(token), "--allow-software-keys"]
    made = _sallyctl(sallyctl, ["ceremony", "officer-key", "--enclave", ENCLAVE, *software])
    officer = _found(r"^public key +(\S+)$", made)
    box.write_text(DOCUMENT.format(enclave=ENCLAVE, officer=officer), encoding="utf-8")
    signed = _sallyctl(sallyctl, ["provision", "sign", str(box), *software, "--out", str(approval)])
    return box, approval, _found(r"^(\d{4}(?: \d{4})+)$", signed)


def _sallyctl(program: Path, arguments: list[str]) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootError(f"sallyctl {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout


def _found(pattern: str, text: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if not found:
        raise BootError(f"nothing like {pattern!r} in {text!r}")
    return found[1]
