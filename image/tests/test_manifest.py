"""The bill of materials names what is inside, and only that."""

import unittest

from build import manifest

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
