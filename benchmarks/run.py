"""Ask all questions of this folder, or those named: ``python -m benchmarks.run [NAME…]``."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path


def names() -> list[str]:
    """The benchmarks there are."""
    found = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return [name for name in found if name not in ("common", "run")]


def main(wanted: list[str]) -> int:
    """Each in a process of its own, so that none finds memory or caches that another left."""
    unknown = sorted(set(wanted) - set(names()))
    if unknown:
        print(
            f"There is no benchmark {unknown[0]}; there are {', '.join(names())}.", file=sys.stderr
        )
        return 2
    failed = 0
    for name in wanted or names():
        print(f"==> {name}", flush=True)
        failed |= subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}"], check=False
        ).returncode
        print(flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
