"""What the tests of several verbs start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cryoray.formats.source import open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate


@pytest.fixture(scope="session")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated project, and verdicts that are its truth but for a few mistakes and two reviews."""
    out = tmp_path_factory.mktemp("day")
    chosen = SimulateSettings(projects=1, images=240, box=32, snr=0.5, junk=0.4, seed=2)
    folder = simulate(out, Settings(simulate=chosen))[0]
    source = open_source(folder / "particles.star")
    keep = np.array([line["keep"] == "1" for line in read_truth(folder)])
    verdict = np.where(keep, "keep", "discard").astype(object)
    verdict[:2] = "review"
    nothing = pa.array([None] * len(keep), pa.float32())
    table = pa.table(
        {
            "image": pa.array(source.images, pa.string()),
            "score": pa.array(keep.astype(np.float32)),
            "verdict": verdict.tolist(),
            **dict.fromkeys(("d1", "d2", "d3"), nothing),
            "reason": pa.array([None] * len(keep), pa.string()),
            "row": np.arange(len(keep)),
        }
    )
    write_verdicts(folder / "verdicts", source, table.slice(0, 236), [(236, "unreadable")])
    return folder
