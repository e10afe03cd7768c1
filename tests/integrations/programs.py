"""Programs that stand for RELION where only its version is asked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def relion(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Programs of RELION's names that tell this version, the only ones on the PATH."""
    for program in ("relion_refine", "relion_pipeliner"):
        (folder / program).write_text(f"#!/bin/sh\necho 'RELION version: {version}'\n")
        (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
