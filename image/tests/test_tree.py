"""Trees of tools are not removed under whoever works in them."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

from build.tree import hold, name_it, remove_unused


class Kept(unittest.TestCase):
    """What `hold` and `remove_unused` agree on."""

    def test_a_tree_in_use_stays(self) -> None:
        """Two builds with different locks share the cache."""
        with tempfile.TemporaryDirectory() as folder:
            used, unused, none = (Path(folder) / name for name in ("used", "unused", "none"))
            for tree in (used, unused):
                (tree / "usr").mkdir(parents=True)
            self.assertTrue(hold(used))
            self.assertFalse(hold(none))
            remove_unused([used, unused])
            self.assertTrue((used / "usr").exists())
            self.assertFalse(unused.exists())

    def test_the_first_of_two_that_make_the_same_counts(self) -> None:
        """Two builds start at once on a machine without a cache."""
        with tempfile.TemporaryDirectory() as folder:
            first, second, name = (Path(folder) / part for part in ("first", "second", "name"))
            for tree in (first, second):
                (tree / tree.name).mkdir(parents=True)
                name_it(tree, name)
                self.assertFalse(tree.exists())
            self.assertTrue((name / "first").exists())
            with self.assertRaises(FileNotFoundError):
                name_it(first, Path(folder) / "nowhere/name")
