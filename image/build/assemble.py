"""From packages, programs and lists to a disk. Runs inside the tools tree, where nothing else is: see `tree`.

Order: packages, root by allow-list, erofs, verity, initrd, signed boot programs, disk. All time stamps are the lock's date, all
identifiers come from the version and the content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

from . import checks, lock, manifest, modules, report, signing, tokens, variables
from .files import Allowed, BuildError
from .lock import names
from .tree import unpack_all

IMAGE = Path("/mnt/image")
POOL = Path("/mnt/pool")
KEYS = Path("/mnt/keys")
BINARIES = Path("/mnt/binaries")
# Of a release, to build the same without its keys; there only if it was given.
SIGNATURES = Path("/mnt/signatures")
PUBLIC_KEYS = ("db.crt", "pcr.pub", "update.pub")
OUT = Path("/mnt/out")
# More files for the root, of an image for development.
OVERLAY = Path("/mnt/overlay")

EROFS = ["-zzstd,level=9", "-C32768", "-Enoinline_data,force-inode-compact", "--workers=1"]
INITRD_LEVEL = 12
ROOT_BYTES_MAX = 40 << 20
UKI_BYTES_MAX = 30 << 20
PHASES = "enter-initrd:leave-initrd"
FOLDERS = {"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755, "tmp": 0o1777, "var": 0o755, "var/tmp": 0o1777, "efi": 0o700, "root": 0o700}
COMMAND_LINE = (
    "roothash={root_hash} systemd.verity_root_options=panic-on-corruption panic=5 rootfstype=erofs ro "
    "gpt systemd.gpt_auto=0 rd.systemd.gpt_auto=0 systemd.machine_id=firmware systemd.import_credentials=no lockdown=integrity "
    "usbcore.authorized_default=0 "
    # For huge pages the kernel would keep a tenth of a small machine's memory free.
    "transparent_hugepage=never "
    "console=tty0 console=ttyS0 loglevel=3 systemd.show_status=0 {more}"
)
# A second way to start the same system, from the boot menu. The TPM does not give the key of the data to it: see `signing.forget_last`.
RESET_PROFILE = "ID=factory-reset\nTITLE=Factory reset\n"
RESET_COMMAND_LINE = "systemd.unit=sallyport-factory-reset.target"


def sorts_last(release: str) -> str:
    """The os-release of the factory reset: with it the boot loader sorts this profile behind those that start a box.

    It sorts by IMAGE_ID first. With the same one, systemd-boot 257 puts the profiles of a program whose starts are counted before the program
    itself, as it takes the counter out of one name and not of the other: each update would start as a factory reset.
    """
    found = re.search(r"^IMAGE_ID=(\S+)$", release, re.MULTILINE)
    if found is None:
        raise BuildError("os-release has no IMAGE_ID")
    return release.replace(found[0], f"{found[0]}-factory-reset")


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be built."""

    version: str
    schema: int
    command_line: str = ""
    tokens: list[str] = dataclasses.field(default_factory=list)
    vendors: list[str] = dataclasses.field(default_factory=list)
    recorded: dict[str, object] = dataclasses.field(default_factory=dict)


class Assembly:
    """One build."""

    def __init__(self, order: Order) -> None:
        self.order = order
        of_tokens = {f"token-{kind}": lock.read(IMAGE / f"lock/token-{kind}.lock") for kind in order.tokens}
        self.locked = tokens.merged(lock.read(IMAGE / "lock/root.lock"), of_tokens)
        self.vendor_files = [file for name in order.vendors for file in tokens.vendor_files(Path("/mnt") / name)]
        self.epoch = self.locked.epoch
        self.seed = uuid.UUID(bytes=hashlib.sha256(f"sallyport {order.version}".encode()).digest()[:16], version=4)
        self.name = f"sallyport-{order.version}"
        self.work = OUT / "work"
        self.packages = self.work / "packages"
        self.root = self.work / "root"
        self.initrd = self.work / "initrd"
        os.environ["SOURCE_DATE_EPOCH"] = str(self.epoch)
        # systemd-repart would write into /var/tmp, and the tree cannot be written to.
        os.environ["TMPDIR"] = "/tmp"

    def run(self) -> None:
        """Builds everything into `/mnt/out`."""
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in (self.packages, self.root, self.initrd):
            folder.mkdir(parents=True)
        self._unpack()
        self._make_root()
        self._make_initrd()
        root_hash = self._pack_root()
        self._pack_initrd()
        self._boot_programs(root_hash)
        self._disk(root_hash)
        self._enrolment()
        self._update()
        manifest.write(self.order, self.locked, self.packages, self.vendor_files, OUT, self.name)
        shutil.rmtree(self.work)
        self._bounds()

    def _unpack(self) -> None:
        unpack_all(self.locked, lambda package: POOL / f"{package.sha256}.deb", self.packages)
        report.say(f"{len(self.locked.packages)} packages unpacked")

    @property
    def kernel(self) -> str:
        """The release of the only kernel."""
        (found,) = (self.packages / "usr/lib/modules").iterdir()
        return found.name

    def _make_root(self) -> None:
        allowed = Allowed([self.packages], self.root)
        allowed.add(names(IMAGE / "system/files.list"))
        allowed.overlay(IMAGE / "system/overlay")
        if OVERLAY.exists():
            allowed.overlay(OVERLAY)
        for program in ("sallyport", "sallyctl"):
            stripped = self.work / program
            subprocess.run(["strip", "-o", stripped, BINARIES / program], check=True)
            allowed.place(stripped, f"usr/bin/{program}", 0o755)
        ordered = self.work / "ordered.so"
        compiler = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-s", "-Wl,-z,now,--build-id=none"]
        subprocess.run([*compiler, "-o", ordered, IMAGE / "system/ordered.c"], check=True)
        allowed.place(ordered, "usr/lib/sallyport/ordered.so", 0o644)
        # Whose updates this version takes.
        allowed.place(KEYS / "update.pub", "usr/lib/sallyport/update.pub", 0o644)
        allowed.wants(IMAGE / "system/wants.list")
        self._tokens(allowed)
        self._release(self.root)
        (self.root / "etc/os-release").symlink_to("../usr/lib/os-release")
        for name, mode in FOLDERS.items():
            (self.root / name).mkdir(exist_ok=True)
            (self.root / name).chmod(mode)
        count = self._modules(self.root, "system")
        self._finish(self.root)
        checks.root(self.root)
        report.say(f"root: {_bytes_of(self.root) >> 20} MiB, {count} kernel modules")

    def _tokens(self, allowed: Allowed) -> None:
        for kind in self.order.tokens:
            folder = IMAGE / "system/tokens"
            allowed.add(names(folder / f"{kind}.list"))
            allowed.overlay(folder / kind)
            if (folder / f"{kind}.wants").exists():
                allowed.wants(folder / f"{kind}.wants")
        for file in self.vendor_files:
            if os.path.lexists(self.root / file.place):
                raise BuildError(f"the vendor's {file.path.name} would replace {file.place}")
            allowed.place(file.path, file.place, 0o644)
        toys = tokens.for_tests(self.root)
        if toys:
            report.warn(f"THIS IMAGE TAKES TOKENS THAT ARE NONE ({', '.join(toys)}): whoever reads the disk has the keys. It is for tests.")
        told = [path.stem for path in sorted((self.root / tokens.DESCRIPTIONS).glob("*.toml"))]
        report.say(f"tokens: {', '.join(told) or 'none'}")

    def _make_initrd(self) -> None:
        allowed = Allowed([self.root, self.packages], self.initrd)
        allowed.add(names(IMAGE / "initrd/files.list"))
        allowed.overlay(IMAGE / "initrd/overlay")
        allowed.wants(IMAGE / "initrd/wants.list")
        for name, mode in {**FOLDERS, "sysroot": 0o755}.items():
            (self.initrd / name).mkdir(exist_ok=True)
            (self.initrd / name).chmod(mode)
        (self.initrd / "init").symlink_to("usr/lib/systemd/systemd")
        (self.initrd / "etc/initrd-release").symlink_to("../usr/lib/os-release")
        count = self._modules(self.initrd, "initrd")
        self._finish(self.initrd)
        checks.initrd(self.initrd)
        report.say(f"initrd: {_bytes_of(self.initrd) >> 20} MiB, {count} kernel modules")

    def _modules(self, tree: Path, name: str) -> int:
        kernel = modules.Modules(self.packages / "usr/lib/modules" / self.kernel)
        target = tree / "usr/lib/modules" / self.kernel
        target.mkdir(parents=True)
        return kernel.install(names(IMAGE / name / "modules.list"), target)

    def _release(self, tree: Path) -> None:
        path = tree / "usr/lib/os-release"
        text = path.read_text(encoding="utf-8")
        text = text.replace("@VERSION@", self.order.version).replace("@SCHEMA@", str(self.order.schema))
        path.write_text(text, encoding="utf-8")

    def _finish(self, tree: Path) -> None:
        (tree / "etc/machine-id").touch()
        subprocess.run(["ldconfig", "-r", tree], check=True)
        shutil.rmtree(tree / "var/cache", ignore_errors=True)
        for folder, subfolders, found in os.walk(tree):
            for name in subfolders + found:
                os.utime(os.path.join(folder, name), (self.epoch, self.epoch), follow_symlinks=False)
        os.utime(tree, (self.epoch, self.epoch))

    def _pack_root(self) -> str:
        image, tree = OUT / "root.erofs", OUT / "root.verity"
        identity = ["-U", str(self.seed), "-L", "sallyport", f"-T{self.epoch}", "--all-root"]
        subprocess.run(["mkfs.erofs", "--quiet", *EROFS, *identity, image, self.root], check=True)
        salt = hashlib.sha256(f"salt of {self.name}".encode()).hexdigest()
        hashed = self.work / "roothash"
        form = ["veritysetup", "format", f"--salt={salt}", f"--uuid={self.seed}", f"--root-hash-file={hashed}", image, tree]
        subprocess.run(form, check=True, stdout=subprocess.DEVNULL)
        root_hash = hashed.read_text(encoding="ascii").strip()
        (OUT / f"{self.name}.roothash").write_text(root_hash + "\n", encoding="ascii")
        report.say(f"root.erofs: {image.stat().st_size >> 10} KiB, root hash {root_hash}")
        return root_hash

    def _pack_initrd(self) -> None:
        found = sorted(str(path.relative_to(self.initrd)) for path in self.initrd.rglob("*"))
        listing = "".join(f"{path}\0" for path in found).encode()
        archive = ["cpio", "-o0", "-H", "newc", "--reproducible", "--quiet", "-R", "0:0"]
        packed = subprocess.run(archive, input=listing, stdout=subprocess.PIPE, cwd=self.initrd, check=True).stdout
        with (self.work / "initrd.cpio.zst").open("wb") as file:
            subprocess.run(["zstd", "-q", f"-{INITRD_LEVEL}", "-T1"], input=packed, stdout=file, check=True)
        report.say(f"initrd packed: {(self.work / 'initrd.cpio.zst').stat().st_size >> 10} KiB")

    def _boot_programs(self, root_hash: str) -> None:
        command_line = COMMAND_LINE.format(root_hash=root_hash, more=self.order.command_line).strip()
        made = SIGNATURES if SIGNATURES.exists() else None
        unsigned, reset = OUT / f"{self.name}.unsigned.efi", self.work / "factory-reset.efi"
        boot = self.packages / "usr/lib/systemd/boot/efi"
        stub = f"--stub={boot}/linuxx64.efi.stub"
        release = self.root / "usr/lib/os-release"
        last = self.work / "factory-reset-release"
        last.write_text(sorts_last(release.read_text(encoding="utf-8")), encoding="utf-8")
        more = [f"--cmdline={command_line} {RESET_COMMAND_LINE}", f"--os-release=@{last}", f"--output={reset}"]
        signing.run(["ukify", "build", f"--profile={RESET_PROFILE}", f"--stub={boot}/addonx64.efi.stub", *more])
        signing.run(
            [
                "ukify",
                "build",
                f"--linux={self.packages}/boot/vmlinuz-{self.kernel}",
                f"--initrd={self.work}/initrd.cpio.zst",
                stub,
                f"--os-release=@{release}",
                f"--uname={self.kernel}",
                f"--cmdline={command_line}",
                f"--pcr-private-key={signing.passing_key(self.work) if made else KEYS / 'pcr.key'}",
                f"--pcr-public-key={KEYS}/pcr.pub",
                f"--phases={PHASES}",
                "--pcr-banks=sha256",
                f"--join-profile={reset}",
                f"--output={unsigned}",
            ]
        )
        if made:
            signing.give_first(unsigned, ".pcrsig", made, f"{self.name}.pcrsig.json")
        signing.forget_last(unsigned, ".pcrsig")
        for name in PUBLIC_KEYS:
            shutil.copyfile(KEYS / name, OUT / name)
        signer = signing.Signer(KEYS, self.epoch, made)
        signer.sign(unsigned, OUT / f"{self.name}.efi", OUT / f"{self.name}.efi.p7")
        (OUT / f"{self.name}.pcrsig.json").write_bytes(signing.section(unsigned, ".pcrsig"))
        signer.sign(boot / "systemd-bootx64.efi", self.work / "boot.efi", OUT / "systemd-boot.efi.p7")
        report.say(f"{self.name}.efi: {unsigned.stat().st_size >> 10} KiB")

    def _disk(self, root_hash: str) -> None:
        esp = self.work / "esp"
        for folder in ("EFI/BOOT", "EFI/Linux", "loader"):
            (esp / folder).mkdir(parents=True)
        shutil.copyfile(self.work / "boot.efi", esp / "EFI/BOOT/BOOTX64.EFI")
        shutil.copyfile(OUT / f"{self.name}.efi", esp / f"EFI/Linux/sallyport_{self.order.version}.efi")
        shutil.copyfile(IMAGE / "disk/loader.conf", esp / "loader/loader.conf")
        values = {
            "@VERSION@": self.order.version,
            "@ROOT_UUID@": str(uuid.UUID(root_hash[:32])),
            "@VERITY_UUID@": str(uuid.UUID(root_hash[32:])),
            "@OUT@": str(OUT),
            "@ESP@": str(esp),
        }
        self._partitions(OUT / f"{self.name}.raw", IMAGE / "disk", esp, values)

    def _partitions(self, disk: Path, definitions: Path, esp: Path, values: dict[str, str]) -> None:
        """Makes a disk of the partitions that a folder defines."""
        for path in [esp, *esp.rglob("*")]:
            os.utime(path, (self.epoch, self.epoch))
        filled = self.work / f"{disk.stem}.repart.d"
        filled.mkdir()
        for path in sorted(definitions.glob("*-*.conf")):
            text = path.read_text(encoding="utf-8")
            for key, value in values.items():
                text = text.replace(key, value)
            (filled / path.name).write_text(text, encoding="utf-8")
        disk.unlink(missing_ok=True)
        options = ["--empty=create", "--size=auto", f"--seed={self.seed}", "--offline=yes", "--dry-run=no", "--split=no"]
        signing.run(["systemd-repart", *options, f"--definitions={filled}", disk])
        allocated = disk.stat().st_blocks * 512
        report.say(f"{disk.name}: {disk.stat().st_size >> 20} MiB, of which {allocated >> 20} MiB are not holes")

    def _enrolment(self) -> None:
        """Makes the medium that puts our keys into the firmware of new hardware, unless the keys that sign these are elsewhere."""
        medium = OUT / f"{self.name}.enrol.raw"
        medium.unlink(missing_ok=True)
        if not all((KEYS / f"{name}.key").exists() for name in ("PK", "KEK")):
            report.say("no PK.key and KEK.key: there is no medium for enrolment")
            return
        esp = self.work / "enrol"
        keys = esp / "loader/keys/auto"
        for folder in (esp / "EFI/BOOT", keys):
            folder.mkdir(parents=True)
        for name in signing.NAMES:
            content = variables.certificates([KEYS / f"{name}.crt"])
            (keys / f"{name}.auth").write_bytes(variables.signed(name, content, KEYS, self.epoch))
            # For the menus of firmwares, most of which take certificates in this form.
            (esp / f"{name}.cer").write_bytes(variables.der((KEYS / f"{name}.crt").read_text(encoding="ascii")))
        shutil.copyfile(self.work / "boot.efi", esp / "EFI/BOOT/BOOTX64.EFI")
        shutil.copyfile(IMAGE / "disk/enrol/loader.conf", esp / "loader/loader.conf")
        self._partitions(medium, IMAGE / "disk/enrol", esp, {"@ESP@": str(esp)})

    def _update(self) -> None:
        """Makes the file that running boxes are updated with, unless the release key is elsewhere: in a token, at another desk."""
        key, update = KEYS / "update.key", OUT / f"{self.name}.update"
        update.unlink(missing_ok=True)
        if not key.exists():
            report.say("no update.key: sign the update with `sallyctl update make --token`")
            return
        terms = tomllib.loads((IMAGE / "release.toml").read_text(encoding="utf-8"))
        options: dict[str, str | Path] = {
            "--release": self.order.version,
            "--root": OUT / "root.erofs",
            "--verity": OUT / "root.verity",
            "--uki": OUT / f"{self.name}.efi",
            "--root-hash": OUT / f"{self.name}.roothash",
            "--schema": str(self.order.schema),
            "--floor": terms["floor"],
            "--from": terms["from"],
            "--built": str(self.epoch),
            "--notes": terms["notes"],
            "--key": key,
            "--out": update,
        }
        signing.run([BINARIES / "sallyctl", "update", "make", *(word for option in options.items() for word in option)])
        report.say(f"{update.name}: {update.stat().st_size >> 20} MiB")

    def _bounds(self) -> None:
        for path, most in ((OUT / "root.erofs", ROOT_BYTES_MAX), (OUT / f"{self.name}.efi", UKI_BYTES_MAX)):
            if path.stat().st_size > most:
                raise BuildError(f"{path.name} has {path.stat().st_size >> 10} KiB, and {most >> 10} KiB are the most")


def _bytes_of(tree: Path) -> int:
    return sum(path.lstat().st_size for path in tree.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> None:
    """Builds what the first argument orders."""
    try:
        Assembly(Order(**json.loads(sys.argv[1]))).run()
    except (BuildError, lock.LockError, subprocess.CalledProcessError) as error:
        report.warn(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
