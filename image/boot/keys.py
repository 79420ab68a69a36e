"""Keys of Secure Boot beside those of the image: a stranger's certificate, a boot program that is revoked."""

from __future__ import annotations

import subprocess
from pathlib import Path

from build.tree import Mount, Tree

from .machine import BootError

IMAGE = Path(__file__).resolve().parents[1]
# Any date: a firmware wants a later one than that of the variable before.
EPOCH = 1_800_000_000


def certificate(tools: Tree, path: Path) -> None:
    """Makes a stranger's certificate."""
    files = ["-keyout", "/dev/null", "-out", f"/mnt/out/{path.name}"]
    _run(tools, ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "7300", "-subj", "/CN=Stranger", *files], path.parent)


def revocation(tools: Tree, keys: Path, digest: bytes, path: Path) -> None:
    """Makes an update of dbx that revokes the boot program with this hash, signed as a firmware wants it."""
    order = [
        "python3",
        "-c",
        "import sys; from pathlib import Path; from build import variables; "
        "revoked = variables.hashes([bytes.fromhex(sys.argv[3])]); "
        "Path(sys.argv[1]).write_bytes(variables.signed('dbx', revoked, Path('/mnt/keys'), int(sys.argv[2])))",
        f"/mnt/out/{path.name}",
        str(EPOCH),
        digest.hex(),
    ]
    _run(tools, order, path.parent, [Mount(IMAGE, "image"), Mount(keys, "keys")])


def _run(tools: Tree, command: list[str], folder: Path, mounts: list[Mount] | None = None) -> None:
    environment = {"PYTHONPATH": "/mnt/image", "PYTHONDONTWRITEBYTECODE": "1"}
    order = tools.command(command, [Mount(folder, "out", writable=True), *(mounts or [])], environment)
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BootError(f"{command[0]}: {done.stderr.strip()}")
