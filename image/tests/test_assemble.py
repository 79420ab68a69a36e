"""What the assembly makes of its texts."""

import unittest
from pathlib import Path

from build import assemble
from build.files import BuildError

RELEASE = Path(__file__).parent.parent / "system/overlay/usr/lib/os-release"


def sort_key(release: str) -> str:
    """What the boot loader sorts an entry by (Boot Loader Specification, "Sorting")."""
    fields = dict(line.split("=", 1) for line in release.splitlines())
    return fields.get("IMAGE_ID", fields["ID"])


class Profiles(unittest.TestCase):
    """The profiles of a boot program."""

    def test_no_box_starts_as_a_factory_reset(self) -> None:
        release = RELEASE.read_text(encoding="utf-8")
        self.assertLess(sort_key(release), sort_key(assemble.sorts_last(release)))

    def test_a_release_without_a_key_is_refused(self) -> None:
        with self.assertRaises(BuildError):
            assemble.sorts_last("ID=sallyport\n")
