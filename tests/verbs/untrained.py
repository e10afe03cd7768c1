"""Sets of noise and ensembles that nobody trained: how they are counted matters, not what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryoray.formats.mrc import StackWriter
from cryoray.formats.source import open_source
from cryoray.models.ensemble import Calibration, Ensemble, Manifest
from cryoray.models.networks import NetworkConfig, build
from cryoray.preparation.plan import plan
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.shards import Part, divide, prepare_shard
from cryoray.preparation.writing import write_set
from cryoray.settings import IngestSettings, PreparationSettings
from tests.examples import Saved, saved

PREPARATION = PreparationSettings(box=32, contrast="bright", features=("defocus",))
SMALL = NetworkConfig(width=8, blocks=(1,), head=8)

STAR = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnImagePixelSize #2
1 2.0

data_particles

loop_
_rlnImageName #1
_rlnMicrographName #2
_rlnOpticsGroup #3
_rlnDefocusU #4
_rlnDefocusV #5
"""


def make_set(
    out: Path,
    projects: Sequence[str] = ("a", "b", "c"),
    micrographs: int = 2,
    each: int = 20,
    preparation: PreparationSettings = PREPARATION,
    labels: Sequence[int] = (1, 0, 1, -1),
) -> PreparedSet:
    """Noise in which labels take turns; what is judged does not matter here, how it is counted does."""
    settings = IngestSettings(preparation=preparation)
    n = micrographs * each
    parts = []
    for number, project in enumerate(projects):
        folder = out.parent / f"source-{out.name}" / project
        folder.mkdir(parents=True)
        with StackWriter(folder / "p.mrcs", 32, 32, "float32", 2.0) as writer:
            writer.append(np.random.default_rng(number).normal(size=(n, 32, 32)).astype("f4"))
        rows = [
            f"{i + 1:06d}@p.mrcs mic{i // each}.mrc 1 {9000 + 100 * i} {9000 + 100 * i}"
            for i in range(n)
        ]
        (folder / "particles.star").write_text(STAR + "\n".join(rows) + "\n")
        planned = plan(open_source(folder / "particles.star"), preparation, 64)
        parts.append(Part(planned, project, np.resize(labels, n).astype(np.int8), None))
    shards = [prepare_shard(work, settings) for work in divide(parts, out, settings)]
    write_set(out, parts, shards, settings)
    return PreparedSet.open(out)


def make_ensemble(
    out: Path,
    knows: Sequence[str] = ("a",),
    split_by: str = "project",
    threshold: float = 0.5,
    seed: int = 0,
    features: tuple[str, ...] = ("defocus",),
) -> Saved:
    """Three networks as they are before training: their opinions differ, and are repeatable."""
    d1, d2, d3 = (build(SMALL, len(features), seed + i) for i in range(3))
    manifest = Manifest(
        kind="particle",
        members=(SMALL,) * 3,
        features=features,
        preparation=PREPARATION,
        calibration=(Calibration(slope=1, offset=0),) * 3,
        threshold=float(np.float32(threshold)),
        review=(threshold - 0.01, threshold + 0.01),
        operating_point={"bound": 0.03, "level": "image", "method": "nothing", "groups": 9},
        prevalence=0.5,
        split_by=split_by,
        training_groups=tuple(knows),
        calibration_groups=tuple(knows),
    )
    return saved(Ensemble(manifest, (d1, d2, d3)), out, "# Untrained\n")


def undecided(examples: PreparedSet, folder: Path, **options: Any) -> float:
    """A threshold at which an ensemble keeps about half."""
    judge = make_ensemble(folder, **options)
    every = np.arange(examples.n)
    features = examples.feature_matrix(judge.features)
    return float(np.median(judge.judge(examples.images(every), features, everyone=True).score))
