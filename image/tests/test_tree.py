"""Trees of tools are not removed under whoever works in them."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path

from build.tree import hold, remove_unused


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
