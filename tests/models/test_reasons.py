"""Reasons of discards: learned where they can be, named for discards alone, and part of the digest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoray.errors import EnsembleError, InternalError
from cryoray.models.ensemble import Ensemble
from cryoray.models.networks import REASONS_NETWORK, build
from cryoray.models.reasons import learn, section
from cryoray.records import REASONS, Reason
from cryoray.settings import AugmentSettings, FitSettings, TrainSettings
from tests.examples import BOX, FEATURES, particles, save_ensemble

LABELS: tuple[Reason, ...] = ("empty", "carbon", "off_centre")


@pytest.fixture(scope="module")
def naming(tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """An ensemble whose fourth network nobody trained either."""
    return save_ensemble(tmp_path_factory.mktemp("naming") / "e", reasons=LABELS)


def images(n: int = 48) -> tuple[np.ndarray, np.ndarray]:
    return particles(n, BOX, seed=4), np.full((n, len(FEATURES)), 1.5, np.float32)


def test_only_what_is_discarded_has_a_reason_and_no_verdict_changes(naming: Ensemble) -> None:
    said = naming.judge(*images())
    discarded = said.verdict == "discard"
    assert 0 < discarded.sum() < len(discarded)
    assert {type(one) for one in said.reason[~discarded]} == {type(None)}
    assert set(said.reason[discarded]) == set(LABELS)
    without = Ensemble(naming.manifest.model_copy(update={"reasons": None}), naming.networks)
    before = without.judge(*images())
    np.testing.assert_array_equal(before.score, said.score)
    assert not before.reason.any()
    table = said.judged
    assert table["reason"].to_pylist() == said.reason.tolist()


def test_reasons_do_not_depend_on_the_batch(naming: Ensemble) -> None:
    pictures, features = images()
    whole = naming.judge(pictures, features).reason.tolist()
    parts = [naming.judge(pictures[i : i + 7], features[i : i + 7]) for i in range(0, 48, 7)]
    assert [reason for part in parts for reason in part.reason] == whole


def test_the_digest_covers_the_network_of_reasons(naming: Ensemble, tmp_path: Path) -> None:
    assert naming.path is not None
    again = Ensemble.load(naming.path)
    assert again.digest == naming.digest
    assert again.judge(*images()).reason.tolist() == naming.judge(*images()).reason.tolist()
    other = build(REASONS_NETWORK, 0, seed=6, outputs=len(LABELS))
    assert naming.with_reasons(LABELS, other).save(tmp_path / "e", "").digest != naming.digest
    other.verdict.bias.data += 1
    naming.with_reasons(LABELS, other).save(tmp_path / "f", "")
    (tmp_path / "e/reasons.safetensors").write_bytes(
        (tmp_path / "f/reasons.safetensors").read_bytes()
    )
    with pytest.raises(EnsembleError, match="not the ones that its digest names"):
        Ensemble.load(tmp_path / "e")
    (tmp_path / "e/reasons.safetensors").unlink()
    with pytest.raises(EnsembleError, match="the weights of reasons are missing"):
        Ensemble.load(tmp_path / "e")


def test_a_description_without_its_network_is_refused(naming: Ensemble) -> None:
    with pytest.raises(InternalError):
        Ensemble(naming.manifest, naming.networks)


def test_an_ensemble_without_reasons_does_not_mention_them(tmp_path: Path) -> None:
    path = save_ensemble(tmp_path / "e").path
    assert path is not None
    assert "reasons" not in (path / "ensemble.json").read_text()


def stripes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise with a bright half (carbon), a bright middle (aggregate), or nothing (empty)."""
    rng = np.random.default_rng(seed)
    reasons = rng.choice([REASONS.index(r) for r in ("empty", "carbon", "aggregate")], n)
    axis = np.arange(16) - 8
    shapes = {
        "carbon": np.broadcast_to(axis > 0, (16, 16)) * 1.5,
        "aggregate": (np.hypot(axis[:, None], axis) < 4) * 1.5,
    }
    pictures = rng.normal(size=(n, 16, 16))
    for i, reason in enumerate(reasons):
        pictures[i] += shapes.get(REASONS[reason], 0.0)
    return pictures.astype(np.float32), reasons.astype(np.int8)


SETTINGS = TrainSettings(
    fit=FitSettings(
        epochs=8, batch=16, augment=AugmentSettings(filter=0, ctf_modulation=0, noise=0, mask=0)
    ),
    folds=3,
)


@pytest.mark.long
def test_reasons_are_learned_and_measured_on_groups_that_were_not_seen() -> None:
    torch.set_num_threads(1)
    pictures, reasons = stripes(360, seed=0)
    groups = np.array([f"g{i % 6}" for i in range(len(reasons))], object)
    rare = reasons.copy()
    rare[:3] = REASONS.index("blurred")  # too few to learn
    learned = learn(rare, groups, lambda rows: pictures[rows], SETTINGS)
    assert learned is not None
    assert learned.labels == ("empty", "carbon", "aggregate")
    measured = learned.confusion.sum()
    assert 110 < measured < 130  # a third of the groups
    assert np.trace(learned.confusion) > 0.8 * measured
    assert f"Of {measured} discards" in section(learned.labels, learned.confusion)


def test_one_reason_alone_is_none() -> None:
    reasons = np.zeros(100, np.int8)
    groups = np.array(["a", "b"] * 50, object)
    assert learn(reasons, groups, lambda rows: np.empty((len(rows), 16, 16)), SETTINGS) is None
