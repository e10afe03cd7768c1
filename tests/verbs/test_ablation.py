"""What an ablation says of an ensemble that was made to need one thing and not the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryoray.boosting.operating_point import Groups
from cryoray.metrics.accuracy import auroc
from cryoray.models.ensemble import Calibration, Ensemble, Manifest
from cryoray.models.networks import NetworkConfig, build
from cryoray.settings import FitSettings, PreparationSettings, TrainSettings
from cryoray.verbs import ablation

CONFIG = NetworkConfig(width=8, blocks=(1,), head=8, dropout=0)
N = 200

#: Images, features, labels and groups.
Given = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    """Three networks that add ten times the first of two features to what they make of the image."""
    networks = [build(CONFIG, 2, seed) for seed in range(3)]
    with torch.no_grad():
        for network in networks:
            assert network.metadata is not None
            features = network.get_parameter("metadata.0.weight")
            features.zero_()
            features[:, 0] = 1.0
            network.get_parameter("head.0.weight")[:, -24:] = 1.0
            network.verdict.weight.fill_(1.0)
    manifest = Manifest(
        kind="particle",
        members=(CONFIG,) * 3,
        features=("defocus", "astigmatism"),
        preparation=PreparationSettings(box=16),
        calibration=(Calibration(slope=1, offset=0),) * 3,
        threshold=0.5,
        review=(0.5, 0.5),
        operating_point={},
        prevalence=0.5,
        split_by="project",
        training_groups=(),
        calibration_groups=(),
    )
    return Ensemble(manifest, (networks[0], networks[1], networks[2]))


@pytest.fixture(scope="module")
def given() -> Given:
    rng = np.random.default_rng(0)
    labels = rng.random(N) < 0.5
    features = rng.normal(size=(N, 2)).astype(np.float32)
    features[:, 0] += 3 * labels
    groups = np.where(np.arange(N) < N // 2, "a", "b").astype(object)
    return rng.normal(size=(N, 16, 16)).astype(np.float32), features, labels, groups


def test_a_cached_predictor_predicts_what_the_ensemble_does(
    ensemble: Ensemble, given: Given
) -> None:
    images, features, _, _ = given
    predictor = ablation.CachedPredictor(ensemble, lambda rows: images[rows], np.arange(N))
    said = ensemble.judge(images, features, everyone=True).score
    np.testing.assert_allclose(predictor.score(features), said, atol=1e-5)
    order = np.random.default_rng(0).permutation(N)
    said = ensemble.judge(images[order], features, everyone=True).score
    np.testing.assert_allclose(predictor.score(features, order), said, atol=1e-5)


def test_the_column_that_matters_is_the_one_whose_shuffling_costs(
    ensemble: Ensemble, given: Given
) -> None:
    images, features, labels, groups = given
    predictor = ablation.CachedPredictor(ensemble, lambda rows: images[rows], np.arange(N))
    found = ablation.importance(
        predictor, features, ensemble.features, labels, groups, 0.5, shuffles=3
    )
    columns = found["columns"]
    assert list(columns) == [ablation.IMAGE, ablation.METADATA, "defocus", "astigmatism"]
    assert columns["defocus"]["auroc"] > 0.2
    assert columns["astigmatism"]["auroc"] == columns["astigmatism"]["changed"] == 0
    assert columns[ablation.METADATA]["auroc"] == pytest.approx(
        columns["defocus"]["auroc"], abs=0.1
    )
    assert columns[ablation.IMAGE]["auroc"] < columns["defocus"]["auroc"] / 2
    both = ablation.together([found, {**found, "images": 3 * N}])
    assert both["columns"]["defocus"]["auroc"] == pytest.approx(columns["defocus"]["auroc"])
    assert both["columns"]["defocus"]["auroc_std"] == pytest.approx(0)


def test_what_tells_groups_apart_alone_is_worth_nothing_within_them(
    ensemble: Ensemble, given: Given
) -> None:
    images, features, labels, _ = given
    groups = np.where(labels, "good", "bad").astype(object)
    alike = features.copy()
    alike[:, 0] = 3 * labels
    predictor = ablation.CachedPredictor(ensemble, lambda rows: images[rows], np.arange(N))
    found = ablation.importance(
        predictor, alike, ensemble.features, labels, groups, 0.5, shuffles=2
    )
    assert found["columns"]["defocus"]["auroc"] == 0


@pytest.mark.long
def test_metadata_alone_are_learned_without_an_image(given: Given) -> None:
    _, features, labels, groups = given
    settings = TrainSettings(fit=FitSettings(epochs=4, batch=32, learning_rate=1e-2), folds=2)
    levels: Groups = {"project": groups, "micrograph": groups}
    judge, threshold = ablation.metadata_alone(
        features, labels.astype(np.int8), levels, groups, settings
    )
    new = np.array([[3.5, 0.0], [-0.5, 0.0]], np.float32)
    high, low = judge(new)
    assert low < threshold <= high
    assert auroc(labels, judge(features)) > 0.9
