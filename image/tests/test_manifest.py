"""The bill of materials names what is inside, and only that."""

import tempfile
import unittest
from pathlib import Path

from build import licences, manifest

LOCK = """\
[[package]]
name = "inner"
version = "1.2.3"
source = "registry"
checksum = "cafe"

[[package]]
name = "server"
version = "0.1.0"
"""


def package(name: str, version: str = "1.0.0") -> manifest.Json:
    return {"id": name, "name": name, "version": version, "license": "MIT/Apache-2.0"}


def node(name: str, *dependencies: tuple[str, str | None]) -> manifest.Json:
    return {"id": name, "deps": [{"pkg": other, "dep_kinds": [{"kind": kind}]} for other, kind in dependencies]}


class Bill(unittest.TestCase):
    """Crates of the programs."""

    def test_only_what_is_linked(self) -> None:
        metadata = {
            "packages": [package("server", "0.1.0"), package("inner", "1.2.3"), package("build-only"), package("test-only"), package("stranger")],
            "resolve": {
                "nodes": [
                    node("server", ("inner", None), ("build-only", "build"), ("test-only", "dev")),
                    *(node(name) for name in ("inner", "build-only", "test-only", "stranger")),
                ]
            },
        }
        found = manifest.crates_of(metadata, LOCK, {"server"})
        self.assertEqual([crate["name"] for crate in found], ["inner", "server"])
        self.assertEqual(found[0]["hashes"], [{"alg": "SHA-256", "content": "cafe"}])
        self.assertEqual(found[0]["licenses"], [{"expression": "MIT OR Apache-2.0"}])
        self.assertNotIn("hashes", found[1])


class Licences(unittest.TestCase):
    """What copyright files say."""

    def test_each_licence_once_in_the_words_of_spdx(self) -> None:
        text = "Format: 1.0\n\nFiles: *\nLicense: GPL-2+ and LGPL-2.1+\n\nFiles: x\nLicense: Expat, BSLA or GPL-2+\n\nLicense: none\n"
        self.assertEqual(licences.named(text), ["BSLA", "Expat", "GPL-2+", "LGPL-2.1+"])
        with tempfile.TemporaryDirectory() as name:
            tree = Path(name)
            folder = tree / "usr/share/doc/libexample1"
            folder.mkdir(parents=True)
            (folder / "copyright").write_text(text, encoding="utf-8")
            (folder.parent / "example").symlink_to("libexample1")
            expected = [{"license": {"name": "BSLA"}}, {"license": {"id": "MIT"}}]
            self.assertEqual(licences.of_package(tree, "example")[:2], expected)
            self.assertEqual(licences.of_package(tree, "stranger"), [])
