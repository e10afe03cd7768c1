"""RELION goes on with what was saved on the selection page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.source import open_source
from cryoray.select import saving
from cryoray.settings import Settings
from cryoray.verbs.select import select
from tests.select.conftest import judged
from tests.system.programs import CLASS2D, Relion
from tests.system.test_relion import same_values, through_relion

pytestmark = pytest.mark.system


def test_relion_classifies_the_particles_of_the_classes_that_a_person_kept(
    class2d: Path, simulated: Path, relion: Relion
) -> None:
    source = open_source(class2d, "class2d")
    empty = np.flatnonzero(source.metadata["rlnClassDistribution"] <= 0)
    verdicts = judged(source, simulated / "verdicts", quarantined=tuple(empty.tolist()))
    out = simulated / "Select/job010"
    with select(verdicts, Settings(), out=out) as opened:
        chosen = opened.page.selection
        best = int(np.nanargmax(chosen.table.particles))
        chosen.clicks.draw("a", 1.0)
        chosen.clicks.turn("a", [best], 1)
        told = saving.save(chosen, out)
    assert told["particles"] == int(chosen.table.particles[best]) > 0
    read = through_relion(relion, out / "particles.star", select="rlnClassNumber")
    same_values(out / "particles.star", read)
    (simulated / "Class2D/job011").mkdir()
    relion(
        simulated,
        "relion_refine",
        *("--i", "Select/job010/particles.star", "--o", "Class2D/job011/run"),
        *("--ref", "Select/job010/class_averages.star", "--iter", "1", *CLASS2D),
    )
    assert len(open_source(simulated / "Class2D/job011")) == told["particles"]


def test_relion_classifies_the_particles_that_a_person_kept(
    simulated: Path, relion: Relion
) -> None:
    source = open_source(simulated / "particles.star")
    verdicts = judged(source, simulated / "verdicts-of-particles", quarantined=(1,))
    with select(verdicts, Settings()) as opened:
        opened.page.selection.clicks.draw("a", 0.5)
        opened.page.selection.clicks.turn("a", [0, 1, 2], 0)
        told = saving.save(opened.page.selection, opened.page.out)
    kept = opened.page.out / "kept.star"
    same_values(kept, through_relion(relion, kept))
    (simulated / "Class2D/job012").mkdir()
    relion(
        simulated,
        "relion_refine",
        *("--i", str(kept.relative_to(simulated)), "--o", "Class2D/job012/run"),
        *("--iter", "1", "--K", "2", *CLASS2D),
    )
    assert len(open_source(simulated / "Class2D/job012")) == told["kept"]
