"""Renews the locks: asks Debian's archive, through apt in a folder of its own, what its packages are today.

The mirror is the one that this machine's apt uses; what it says counts because Debian's archive keys signed it. Nothing of the
machine's own packages has a say: apt sees an empty system.
"""

from __future__ import annotations

import datetime
import email.utils
import re
import subprocess
import tempfile
from pathlib import Path

from . import lock, report

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
RELEASE = "trixie"
PACKAGES_MAX = 60
# The tokens that an image is built for if nobody says otherwise: what a real box wants.
TOKENS = "opensc,tpm2"

SOURCE = """\
Types: deb
URIs: {site}
Suites: {suites}
Components: main
Architectures: amd64
Signed-By: {keyring}

"""


class Archive:
    """Debian's archive as this machine reaches it."""

    def __init__(self, folder: Path) -> None:
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        (folder / "status").touch()
        sources = folder / "debian.sources"
        sources.write_text(sources_text(sites()), encoding="utf-8")
        settings = {
            "Dir::State": folder,
            "Dir::State::status": folder / "status",
            "Dir::State::lists": folder / "lists",
            "Dir::Cache": folder / "cache",
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        }
        self._lists = folder / "lists"
        self._options = [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]
        self._apt("apt-get", "update", "--error-on=any")

    def date(self) -> datetime.datetime:
        """When the newest of the archive's lists was signed."""
        dates = []
        for path in sorted(self._lists.glob("*_InRelease")):
            found = re.search(r"^Date: (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            if found:
                dates.append(email.utils.parsedate_to_datetime(found[1]))
        return max(dates)

    def closure(self, wanted: list[str]) -> list[lock.Package]:
        """These packages and all that they depend on."""
        plan = self._apt("apt-get", "install", "--simulate", "--no-install-recommends", *wanted)
        found = re.findall(r"^Inst (\S+) \((\S+) ", plan, re.MULTILINE)
        return self._show([f"{name}={version}" for name, version in found])

    def exactly(self, wanted: list[str]) -> list[lock.Package]:
        """These packages and no others; `linux-image-amd64` stands for the kernel that it depends on today."""
        chosen = [self._kernel() if name == "linux-image-amd64" else name for name in wanted]
        return self._show(chosen)

    def _kernel(self) -> str:
        text = self._apt("apt-cache", "show", "--no-all-versions", "linux-image-amd64")
        found = re.search(r"^Depends: (linux-image-\S+)", text, re.MULTILINE)
        if not found:
            raise lock.LockError("linux-image-amd64 depends on no kernel: look at it with apt-cache")
        return found[1]

    def _show(self, wanted: list[str]) -> list[lock.Package]:
        text = self._apt("apt-cache", "show", "--no-all-versions", *wanted)
        packages = [package_of(stanza) for stanza in text.split("\n\n") if stanza.strip()]
        if len(packages) != len(wanted):
            raise lock.LockError(f"the archive has {len(packages)} of {len(wanted)} packages: {' '.join(wanted)}")
        return packages

    def _apt(self, command: str, *arguments: str) -> str:
        done = subprocess.run([command, *self._options, *arguments], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise lock.LockError(f"{command} {arguments[0]}: {done.stderr.strip()}")
        return done.stdout


def package_of(stanza: str) -> lock.Package:
    """One package as `apt-cache show` prints it."""
    fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
    return lock.Package(
        fields["Package"],
        fields["Version"],
        fields["Architecture"],
        fields["SHA256"],
        int(fields["Size"]),
        fields["Filename"],
    )


def sites() -> dict[str, str]:
    """The addresses of Debian's archive (`Debian`) and of its security updates (`Debian-Security`) in this machine's apt."""
    layout = "$(ORIGIN)|$(LABEL)|$(SITE)"
    query = ["apt-get", "indextargets", "--format", layout, "Created-By: Packages"]
    rows = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    found: dict[str, str] = {}
    for row in rows:
        origin, label, site = row.split("|")
        if origin == "Debian":
            found.setdefault(label, site)
    if "Debian" not in found:
        raise lock.LockError("this machine's apt knows no mirror of Debian: add one to its sources, run `apt-get update`")
    return found


def sources_text(known: dict[str, str]) -> str:
    """What apt is to read, for the release that images are made of."""
    text = SOURCE.format(site=known["Debian"], suites=f"{RELEASE} {RELEASE}-updates", keyring=KEYRING)
    if "Debian-Security" in known:
        text += SOURCE.format(site=known["Debian-Security"], suites=f"{RELEASE}-security", keyring=KEYRING)
    return text


def renew(folder: Path) -> None:
    """Writes the lock of each tree into `folder`, from the list of what is wanted there."""
    if not KEYRING.exists():
        raise lock.LockError("Debian's archive keys are not there: apt-get install debian-archive-keyring")
    with tempfile.TemporaryDirectory(prefix="sallyport-lock-") as scratch:
        archive = Archive(Path(scratch))
        date = archive.date()
        root = archive.exactly(lock.names(folder / "root.want"))
        wanted = {path.stem: lock.names(path) for path in sorted(folder.glob("token-*.want"))}
        of_tokens = {name: archive.exactly(packages) for name, packages in wanted.items()}
        trees = {name: archive.closure(lock.names(folder / f"{name}.want")) for name in ("tools", "boot")}
    usual = {package.name for package in root}.union(*({p.name for p in of_tokens[f"token-{kind}"]} for kind in TOKENS.split(",")))
    if len(usual) > PACKAGES_MAX:
        raise lock.LockError(f"{len(usual)} packages in the root, and {PACKAGES_MAX} are the most")
    for name, packages in {"root": root, **of_tokens, **trees}.items():
        (folder / f"{name}.lock").write_text(lock.Lock(date, tuple(packages)).text(), encoding="utf-8")
        report.say(f"{name}.lock: {len(packages)} packages, {sum(p.size for p in packages) >> 20} MiB")
