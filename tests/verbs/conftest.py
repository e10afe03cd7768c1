"""What the tests of several verbs start from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.source import open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.settings import Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate
from tests.examples import verdicts_of


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
    fates = [*verdict[:236].tolist(), "quarantined"]
    write_verdicts(folder / "verdicts", source, verdicts_of(fates))
    return folder
