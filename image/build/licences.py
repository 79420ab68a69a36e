"""Which licences a Debian package names, from its machine-readable copyright file (DEP-5), in the words of SPDX where there are some.

A copyright file speaks of the sources that a package was made of; what is listed is every licence that it names, which is at least those of the
files in the image.
"""

from __future__ import annotations

import re
from pathlib import Path

# Debian's short names that SPDX has other words for. A name that is neither here nor in SPDX stays as it is.
SPDX = {
    "0BSD": "0BSD",
    "Apache-2": "Apache-2.0",
    "Apache-2.0": "Apache-2.0",
    "Artistic": "Artistic-1.0-Perl",
    "BSD-2-Clause": "BSD-2-Clause",
    "BSD-2-clause": "BSD-2-Clause",
    "BSD-3-Clause": "BSD-3-Clause",
    "BSD-3-clause": "BSD-3-Clause",
    "BSD-4-clause": "BSD-4-Clause",
    "BSL-1.0": "BSL-1.0",
    "CC-BY-SA-4.0": "CC-BY-SA-4.0",
    "CC0": "CC0-1.0",
    "CC0-1.0": "CC0-1.0",
    "Expat": "MIT",
    "FSFAP": "FSFAP",
    "FSFUL": "FSFUL",
    "FSFULLR": "FSFULLR",
    "GPL-1+": "GPL-1.0-or-later",
    "GPL-2": "GPL-2.0-only",
    "GPL-2.0": "GPL-2.0-only",
    "GPL-2+": "GPL-2.0-or-later",
    "GPL-2.0+": "GPL-2.0-or-later",
    "GPL-3": "GPL-3.0-only",
    "GPL-3+": "GPL-3.0-or-later",
    "ISC": "ISC",
    "LGPL-2": "LGPL-2.0-only",
    "LGPL-2+": "LGPL-2.0-or-later",
    "LGPL-2.1": "LGPL-2.1-only",
    "LGPL-2.1+": "LGPL-2.1-or-later",
    "LGPL-3+": "LGPL-3.0-or-later",
    "SunPro": "SunPro",
    "Unicode-DFS-2016": "Unicode-DFS-2016",
    "X11": "X11",
    "Zlib": "Zlib",
    "zlib": "Zlib",
}
# Packages whose copyright file is prose, or in another package.
PROSE = {"libcrypt1": "LGPL-2.1-or-later", "libgcc-s1": "GPL-3.0-or-later WITH GCC-exception-3.1"}
FIELD = re.compile(r"^License:[ \t]*(\S[^\n]*)$", re.MULTILINE)
SEVERAL = re.compile(r",?\s+(?:and|or)\s+|,\s+")
# What stands in the place of a licence where there is none.
NONE = {"none", "verbatim"}


def of_package(tree: Path, package: str) -> list[dict[str, object]]:
    """The licences of an unpacked package, as CycloneDX lists them; none if its copyright file is not machine-readable."""
    if package in PROSE:
        return [{"expression": PROSE[package]}]
    path = tree / "usr/share/doc" / package / "copyright"
    if not path.exists():
        return []
    return [_component(name) for name in named(path.read_text(encoding="utf-8", errors="replace"))]


def named(copyright_file: str) -> list[str]:
    """Every licence that a copyright file names, once and sorted."""
    found: set[str] = set()
    for line in FIELD.findall(copyright_file):
        found.update(SEVERAL.split(line.strip()))
    return sorted(found - NONE)


def _component(name: str) -> dict[str, object]:
    return {"license": {"id": SPDX[name]} if name in SPDX else {"name": name}}
