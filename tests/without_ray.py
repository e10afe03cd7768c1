"""Runs a command of cryoray in a process of its own, in which nothing may import Ray."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import sys
from cryoray.cli.main import main
try:
    main()
except SystemExit as done:
    if done.code:
        raise
sys.exit("ray was imported" if "ray" in sys.modules else None)
"""


def cryoray(*words: object) -> None:
    """Fails where the command does, or where Ray was imported."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
