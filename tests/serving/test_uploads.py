"""What an ingress that was killed left of its uploads is removed by the next one, and nothing else is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cryoray.serving.uploads import sweep


def test_what_a_dead_process_left_is_swept_and_what_a_living_one_holds_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    host = socket.gethostname()
    names = {
        "left": f"cryoray-upload-{host}-{int(dead.stdout)}-x",
        "held": f"cryoray-upload-{host}-{os.getpid()}-x",
        "elsewhere": f"cryoray-upload-another-{int(dead.stdout)}-x",
        "old": f"cryoray-upload-another-{os.getpid()}-y",
        "other": "somebody-else's",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "upload.mrcs").touch()
    os.utime(tmp_path / names["old"], (0, 0))
    (tmp_path / "target").mkdir()
    (tmp_path / f"cryoray-upload-{host}-{int(dead.stdout)}-link").symlink_to(tmp_path / "target")
    sweep()
    assert {one.name for one in tmp_path.iterdir()} == {
        names["held"], names["elsewhere"], names["other"], "target",
        f"cryoray-upload-{host}-{int(dead.stdout)}-link",
    }  # fmt: skip
