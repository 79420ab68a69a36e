"""What a build tells the person who waits for it."""

from __future__ import annotations

import sys
import time

_START = time.monotonic()


def say(text: str) -> None:
    """One line, with the seconds since the start."""
    print(f"{time.monotonic() - _START:7.1f} s  {text}", flush=True)


def warn(text: str) -> None:
    """Something to be read before going on."""
    print(f"\n*** {text}\n", file=sys.stderr, flush=True)
