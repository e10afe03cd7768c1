"""The bundle: saved, loaded, tampered with, asked."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cryoray.errors import EnsembleError
from cryoray.models.ensemble import Calibration, Ensemble, Manifest
from cryoray.models.networks import build, logits
from cryoray.models.registry import resolve
from cryoray.records import JUDGED_SCHEMA
from cryoray.settings import PreparationSettings
from tests.models.toy import TINY


def pixels_and_metadata(n=200):
    rng = np.random.default_rng(0)
    images = rng.normal(0, 1, (n, 16, 16)).astype(np.float32)
    features = rng.normal(0, 1, (n, 2)).astype(np.float32)
    features[::3, 0] = np.nan
    return images, features


def make(threshold=0.5, review=(0.45, 0.55)):
    """Untrained members, each calibrated to say keep to half of the images: they often disagree."""
    d1, d2, d3 = networks = tuple(build(config, 2, seed) for seed, config in enumerate(TINY))
    images, features = map(torch.from_numpy, pixels_and_metadata())
    said = [logits(network, images, features) for network in networks]
    slopes = [1 / float(one.std()) for one in said]
    manifest = Manifest(
        kind="particle",
        members=TINY,
        features=("defocus", "figure_of_merit"),
        preparation=PreparationSettings(box=16),
        calibration=tuple(
            Calibration(slope=slope, offset=-slope * float(one.median()))
            for slope, one in zip(slopes, said, strict=True)
        ),
        threshold=threshold,
        review=review,
        operating_point={},
        prevalence=0.6,
        split_by="project",
        training_groups=("a", "b"),
        calibration_groups=("a", "b"),
    )
    return Ensemble(manifest, (d1, d2, d3))


@pytest.fixture(scope="module")
def inputs():
    return pixels_and_metadata()


@pytest.fixture
def saved(tmp_path):
    return make().save(tmp_path / "ensemble", "# A card\n")


def test_loads_what_was_saved(saved, inputs):
    loaded = Ensemble.load(saved.path)
    assert loaded.digest == saved.digest
    assert loaded.manifest == saved.manifest
    np.testing.assert_array_equal(loaded.judge(*inputs).score, saved.judge(*inputs).score)
    assert (saved.path / "card.md").read_text() == "# A card\n"


def test_the_digest_names_the_content_and_not_the_place(saved, tmp_path):
    assert make().save(tmp_path / "other", "another card").digest == saved.digest
    assert make(threshold=0.25).save(tmp_path / "third", "").digest != saved.digest


def test_d3_is_asked_about_the_disagreements_alone(saved, inputs):
    answer = saved.judge(*inputs)
    apart = (answer.d1 >= 0.5) != (answer.d2 >= 0.5)
    assert 0 < apart.sum() < len(apart)
    np.testing.assert_array_equal(~np.isnan(answer.d3), apart)


def test_asking_everyone_changes_no_forced_decision_and_no_verdict(saved, inputs):
    some, everyone = saved.judge(*inputs), saved.judge(*inputs, everyone=True)
    assert not np.isnan(everyone.d3).any()
    np.testing.assert_array_equal(some.score >= 0.5, everyone.score >= 0.5)
    np.testing.assert_array_equal(some.verdict, everyone.verdict)


def test_without_review_the_threshold_decides(saved, inputs):
    said, decided = saved.judge(*inputs), saved.without_review().judge(*inputs)
    assert "review" in said.verdict
    assert np.array_equal(decided.verdict == "keep", said.score >= np.float32(saved.threshold))
    assert set(decided.verdict) == {"keep", "discard"}
    assert [one is not None for one in decided.reason] == [
        saved.reasons is not None and verdict == "discard" for verdict in decided.verdict
    ]


def test_verdicts_as_a_table(saved, inputs):
    middle = np.quantile(saved.judge(*inputs, everyone=True).score, [0.4, 0.5, 0.6]).tolist()
    answer = make(threshold=middle[1], review=(middle[0], middle[2])).judge(*inputs)
    table = answer.judged
    assert answer.table.schema == JUDGED_SCHEMA
    assert table["d3"].null_count == np.isnan(answer.d3).sum()
    assert set(table["verdict"].to_pylist()) == {"keep", "discard", "review"}


def test_no_images_give_no_verdicts(saved):
    answer = saved.judge(np.empty((0, 16, 16), np.float32), np.empty((0, 2), np.float32))
    assert len(answer) == 0


def test_weights_that_were_changed_are_refused(saved):
    weights = saved.path / "d2.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(EnsembleError, match="not the ones that its digest names"):
        Ensemble.load(saved.path)


def test_a_threshold_that_was_changed_is_refused(saved):
    manifest = saved.path / "ensemble.json"
    manifest.write_text(manifest.read_text().replace('"threshold": 0.5', '"threshold": 0.1'))
    with pytest.raises(EnsembleError, match="not the ones that its digest names"):
        Ensemble.load(saved.path)


@pytest.mark.parametrize("damage", ["{", '{"kind": "particle"}', '{"format": 99}'])
def test_a_damaged_manifest_is_refused_in_one_sentence(saved, damage):
    (saved.path / "ensemble.json").write_text(damage)
    with pytest.raises(EnsembleError, match=r"^[^\n]*ensemble\.json[^\n]*not readable[^\n]*$"):
        Ensemble.load(saved.path)


def test_missing_weights_and_missing_folders_are_named(saved, tmp_path):
    (saved.path / "d3.safetensors").unlink()
    with pytest.raises(EnsembleError, match=r"d3\.safetensors: the weights of d3 are missing"):
        Ensemble.load(saved.path)
    with pytest.raises(EnsembleError, match=r"not an ensemble: it has no ensemble\.json"):
        Ensemble.load(tmp_path)


def test_another_kind_is_refused(saved, tmp_path):
    with pytest.raises(EnsembleError, match="judges particle images, this holds class2d images"):
        saved.check_kind("class2d", tmp_path / "run_it025_model.star")


def test_the_registry_finds_by_folder_and_by_name(saved, tmp_path):
    home = tmp_path / "registry" / "ribosomes"
    make().save(home / saved.digest, "")
    (home / "active").write_text(saved.digest + "\n")
    assert resolve(saved.path, tmp_path / "registry") == saved.path
    assert resolve("ribosomes", tmp_path / "registry") == home / saved.digest
    with pytest.raises(EnsembleError, match="no such ensemble"):
        resolve("nobody", tmp_path / "registry")


def test_ensemble_json_has_the_keys_that_others_rely_on(saved):
    written = json.loads((saved.path / "ensemble.json").read_text())
    assert {
        "format", "kind", "digest", "members", "features", "preparation", "calibration", "threshold",
        "review", "operating_point", "prevalence", "training_groups", "calibration_groups",
    } <= set(written)  # fmt: skip


def test_vast_layers_in_the_description_allocate_nothing(saved):
    manifest = saved.path / "ensemble.json"
    said = json.loads(manifest.read_text())
    said["members"][0] |= {"width": 1024, "blocks": [2] * 8, "head": 65536}  # terabytes
    manifest.write_text(json.dumps(said))
    with pytest.raises(EnsembleError, match="the weights of d1 are missing or damaged"):
        Ensemble.load(saved.path)
    for beyond in ({"width": 1 << 40}, {"blocks": [10**9]}, {"head": 1 << 40}, {"stem": 10**6 + 1}):
        said["members"][0] |= beyond
        manifest.write_text(json.dumps(said))
        with pytest.raises(EnsembleError, match="not readable"):
            Ensemble.load(saved.path)
