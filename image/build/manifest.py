"""What was built, of what and with what: manifest, bill of materials (CycloneDX), checksums."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import licences, lock
from .pool import digest

if TYPE_CHECKING:
    from .assemble import Order
    from .tokens import VendorFile

Json = dict[str, Any]


def write(order: Order, locked: lock.Lock, packages: Path, vendor: list[VendorFile], out: Path, name: str) -> None:
    """Writes `NAME.manifest.json`, `NAME.sbom.json` and `SHA256SUMS` beside the artefacts."""
    crates = order.recorded.get("crates", [])
    recorded = {key: value for key, value in order.recorded.items() if key != "crates"}
    bill = sbom(name, order.version, locked, packages, crates if isinstance(crates, list) else [], vendor)
    _json(out / f"{name}.sbom.json", bill)
    artefacts = sorted(path for path in out.iterdir() if path.is_file() and not path.name.startswith(("SHA256SUMS", name + ".manifest")))
    about = {
        "name": "sallyport",
        "version": order.version,
        "date": locked.date.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "root_hash": (out / f"{name}.roothash").read_text(encoding="ascii").strip(),
        "packages": len(locked.packages),
        "tokens": sorted(order.tokens),
        **recorded,
        "artefacts": {path.name: {"bytes": path.stat().st_size, "sha256": digest(path)} for path in artefacts},
    }
    _json(out / f"{name}.manifest.json", about)
    sums = [*artefacts, out / f"{name}.manifest.json"]
    text = "".join(f"{digest(path)}  {path.name}\n" for path in sums)
    (out / "SHA256SUMS").write_text(text, encoding="ascii")


def sbom(name: str, version: str, locked: lock.Lock, unpacked: Path, crates: list[Json], vendor: list[VendorFile]) -> Json:
    """The bill of materials: the image, its packages (whose licences are taken from the tree where they are unpacked), its crates, files of vendors."""
    packages = [_package(package, unpacked) for package in sorted(locked.packages)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, name + locked.text())}",
        "version": 1,
        "metadata": {
            "timestamp": locked.date.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {"type": "operating-system", "name": "sallyport", "version": version, "bom-ref": name},
        },
        "components": packages + crates + [_vendor_file(file) for file in vendor],
    }


def _package(package: lock.Package, unpacked: Path) -> Json:
    url = f"pkg:deb/debian/{package.name}@{package.version.replace('+', '%2B').replace(':', '%3A')}?arch={package.architecture}"
    return {
        "type": "library",
        "bom-ref": url,
        "name": package.name,
        "version": package.version,
        "purl": url,
        "hashes": [{"alg": "SHA-256", "content": package.sha256}],
        "licenses": licences.of_package(unpacked, package.name),
    }


def _vendor_file(file: VendorFile) -> Json:
    hashes = [{"alg": "SHA-256", "content": file.sha256}]
    return {"type": "file", "bom-ref": f"file:{file.place}", "name": file.place, "hashes": hashes}


def crates_of(metadata: Json, lock_text: str, roots: set[str]) -> list[Json]:
    """The crates that end up in the programs of the packages `roots`, from `cargo metadata` and `Cargo.lock`.

    Crates that only builds and tests need are left out.
    """
    checksums = dict(_checksums(lock_text))
    by_id = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    waiting = [identifier for identifier, package in by_id.items() if package["name"] in roots]
    seen: set[str] = set()
    while waiting:
        identifier = waiting.pop()
        if identifier in seen:
            continue
        seen.add(identifier)
        for dependency in nodes[identifier]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    return [_crate(by_id[identifier], checksums) for identifier in sorted(seen, key=lambda one: _key(by_id[one]))]


def _key(package: Json) -> tuple[str, str]:
    return package["name"], package["version"]


def _crate(package: Json, checksums: dict[tuple[str, str], str]) -> Json:
    url = f"pkg:cargo/{package['name']}@{package['version']}"
    component: Json = {"type": "library", "bom-ref": url, "name": package["name"], "version": package["version"], "purl": url}
    if package.get("license"):
        component["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    checksum = checksums.get(_key(package))
    if checksum:
        component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return component


def _checksums(text: str) -> Iterator[tuple[tuple[str, str], str]]:
    for block in text.split("[[package]]")[1:]:
        fields = dict(line.split(" = ", 1) for line in block.splitlines() if " = " in line)
        if "checksum" in fields:
            yield (fields["name"].strip('"'), fields["version"].strip('"')), fields["checksum"].strip('"')


def _json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")
