"""A night: what people said trains a challenger; who is better is served; a second night does nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cryoray.formats.source import open_source
from cryoray.models import registry
from cryoray.models.ensemble import Calibration, Ensemble
from cryoray.models.networks import logits
from cryoray.preparation.prepared import PreparedSet
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Outcome, Seen, stack_id
from flows import nightly as flow
from flows.nightly import nightly
from tests.examples import save_ensemble
from tests.session.test_gathering import JUDGES, TEACHES
from tests.sets import BOX, write_labelled_set

pytestmark = pytest.mark.long


def session(ledger: Ledger, name: str, folder: Path, *, blind: bool) -> None:
    """A session of plain blobs and noise, of which every image was labelled, rightly."""
    prepared = write_labelled_set(folder, name, n=20, seed=len(name))
    source = open_source(folder / f"{name}-source")
    labels = PreparedSet.open(prepared).labels
    shutil.rmtree(prepared)
    n = len(source)
    ledger.open_session(name, root=folder, folder=folder, trainable=True, audit_size=n * blind)
    key = stack_id(name, str(source.path))
    ledger.expect(name, [Seen(str(source.path), None, "particle", "one", 1, 1, 1.0)])
    sample = tuple((row, source.images[row], row / n) for row in range(n)) if blind else ()
    ledger.commit(name, key, Outcome("one", "judged", n, n, 0, 0, 0, 0.5, "e", 2.0, sample=sample))
    for row in range(n):
        keep = bool(labels[row])
        if blind:
            ledger.label_blind(name, key, row, keep=keep, who="Ada")
        else:
            said = {"image": source.images[row], "before": "keep", "score": 0.5, "digest": "one"}
            ledger.override(name, key, row, keep, who="Ada", **said)


def ensemble(path: Path, prepared: Path, *, good: bool) -> Path:
    """Untrained networks, turned so that all of them tell blobs from noise, or take one for the other."""
    untrained = save_ensemble(path.with_name(f"{path.name}-untrained"), box=BOX)
    examples = PreparedSet.open(prepared)
    images = torch.from_numpy(examples.images(np.arange(examples.n)))
    features = torch.from_numpy(examples.feature_matrix(untrained.features))
    blob, calibrations = torch.from_numpy(examples.labels == 1), []
    for network in untrained.networks:
        said = logits(network, images, features)
        if (said[blob].median() > said[~blob].median()) != good:
            for parameter in network.verdict.parameters():
                parameter.data.neg_()
            said = -said
        slope = 4 / float(said.std())
        middle = float(said[blob].median() + said[~blob].median()) / 2
        calibrations.append(Calibration(slope=slope, offset=-slope * middle))
    d1, d2, d3 = calibrations
    manifest = untrained.manifest.model_copy(update={"calibration": (d1, d2, d3)})
    Ensemble(manifest, untrained.networks).save(path, "# Turned\n")
    return path


def test_a_better_challenger_is_served_once_and_one_that_was_rolled_back_is_not(
    prefect: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training itself, which takes minutes, is tested elsewhere: here it gives what it would learn."""
    root = tmp_path / "registry"
    base = write_labelled_set(tmp_path / "sets", "p0", n=30)
    first = registry.promote(ensemble(tmp_path / "champion", base, good=False), root, "live").digest
    learned: list[list[Path]] = []

    def learn(sets: list[Path], out: Path, overrides: dict[str, Any]) -> Path:
        learned.append(sets)
        return ensemble(out, base, good=True)

    monkeypatch.setattr(flow, "train", learn)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    session(ledger, TEACHES, tmp_path / "data", blind=False)
    session(ledger, JUDGES, tmp_path / "data", blind=True)
    ledger.close()
    overrides = {
        "registry": str(root),
        "nightly": {"judge_share": 0.5, "least": 10},
        "train": {"operating_point": {"bound": 0.2}},
    }

    def night() -> dict[str, Any]:
        return nightly(
            "live", [str(tmp_path / "ledger.sqlite")], [base], tmp_path / "out", overrides
        )

    made = night()
    assert made["promoted"], made["why"]
    digest = registry.active(root, "live")
    assert digest != first
    assert registry.history(root, "live")[-1].reason == made["why"]
    assert "challenger is better" in made["page"].read_text()
    ((_, taught),) = learned
    assert set(PreparedSet.open(taught).table["project"].to_pylist()) == {TEACHES}

    files = sorted((tmp_path / "out").rglob("*"))
    again = night()
    assert not again["promoted"]
    assert "nothing was labelled" in again["why"]
    assert len(learned) == 1
    assert sorted((tmp_path / "out").rglob("*")) == files

    registry.rollback(root, "live")
    assert "rolled back" in night()["why"]
    assert registry.active(root, "live") == first
