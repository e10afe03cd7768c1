"""Ask all questions of this folder, or those named: ``python -m benchmarks.run [NAME…]``."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path


def modules() -> dict[str, str]:
    """The benchmarks there are: module by name, those of speed first."""
    return {
        module.name: f"benchmarks.{folder}.{module.name}"
        for folder in ("speed", "accuracy")
        for module in pkgutil.iter_modules([str(Path(__file__).parent / folder)])
    }


def main(wanted: list[str]) -> int:
    """Each in a process of its own, so that none finds memory or caches that another left."""
    unknown = sorted(set(wanted) - set(modules()))
    if unknown:
        print(
            f"There is no benchmark {unknown[0]}; there are {', '.join(modules())}.",
            file=sys.stderr,
        )
        return 2
    failed = 0
    for name in wanted or modules():
        print(f"==> {name}", flush=True)
        failed |= subprocess.run([sys.executable, "-m", modules()[name]], check=False).returncode
        print(flush=True)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
