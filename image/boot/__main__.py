"""The command line: `python3 -m boot SCENARIO…`, called by `make image-boot`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from build import lock, pool, report, tree
from build.__main__ import LOCKS, REPOSITORY

from . import scenarios
from .machine import BootError
from .scenarios.bench import Bench


def main() -> None:
    """Plays the scenarios that the command line names, all if it names none."""
    width = max(map(len, scenarios.ALL)) + 2
    known = "\n".join(f"  {name:{width}}{(play.__doc__ or '').splitlines()[0]}" for name, play in scenarios.ALL.items())
    top = argparse.ArgumentParser(prog="boot", epilog=known, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("scenario", nargs="*", help="what to play; everything if none is given")
    top.add_argument("--image", type=Path, default=REPOSITORY / "target/image", help="the image, or a folder of which the newest counts; `make image` has its own")
    top.add_argument("--keys", type=Path, default=pool.cache() / "test-keys", help="the folder of the keys that it was signed with")
    default = REPOSITORY / "target/image/cargo/release/sallyctl"
    top.add_argument("--sallyctl", type=Path, default=default, help="the program of the officers' desk; that of the image if not given")
    top.add_argument("--folder", type=Path, default=REPOSITORY / "target/vm", help="where machines and their logs are kept")
    arguments = top.parse_args()
    strangers = set(arguments.scenario) - set(scenarios.ALL)
    if strangers:
        top.error(f"there is no scenario {' '.join(sorted(strangers))}; there are {' '.join(scenarios.ALL)}")
    try:
        tools = tree.make("boot", lock.read(LOCKS / "boot.lock"), pool.Pool(pool.cache() / "pool"))
        image = newest(arguments.image) if arguments.image.is_dir() else arguments.image
    except (BootError, lock.LockError, tree.CommandFailed) as error:
        report.warn(str(error))
        sys.exit(1)
    bench = Bench(tools, arguments.keys, image, arguments.folder, arguments.sallyctl)
    names = arguments.scenario or list(scenarios.ALL)
    failed = [name for name in names if not played(bench, name)]
    report.say(f"scenarios: {len(names) - len(failed)} passed; {len(failed)} failed {' '.join(failed)}".rstrip())
    sys.exit(1 if failed else 0)


def played(bench: Bench, name: str) -> bool:
    """Plays a scenario; whether all was as it should be."""
    play = scenarios.ALL[name]
    report.say(f"{name}: {(play.__doc__ or '').splitlines()[0]}")
    try:
        play(bench)
    except (BootError, tree.CommandFailed) as error:
        report.warn(f"{name}: {error}")
        return False
    report.say(f"{name}: as it should be")
    return True


def newest(folder: Path) -> Path:
    """The image in a folder that was built last."""
    images = sorted(folder.glob("*[0-9].raw"), key=lambda path: path.stat().st_mtime)
    if not images:
        raise BootError(f"there is no image in {folder}: run `make image`")
    return images[-1]


if __name__ == "__main__":
    main()
