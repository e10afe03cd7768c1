"""An ensemble is set right for a project by what little is said of it, and promises no more than before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cryoray.boosting.calibration import fit_platt
from cryoray.errors import InputError, SelectionError
from cryoray.models.ensemble import Calibration, Ensemble, Manifest
from cryoray.models.networks import Network, NetworkConfig, build, logits
from cryoray.models.predict import profile_set
from cryoray.preparation.labelling import labels_from
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import Settings
from cryoray.verbs.adapt import adapt
from tests.examples import Saved, saved, with_heads
from tests.sets import BOX, write_labelled_set

CONFIG = NetworkConfig(width=8, blocks=(1,), head=8, dropout=0)


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return PreparedSet.open(write_labelled_set(tmp_path_factory.mktemp("past"), "old", seed=1))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return PreparedSet.open(write_labelled_set(tmp_path_factory.mktemp("new"), "new", seed=2))


def ensemble(past: PreparedSet, folder: Path, wrong_by: float = 0.0) -> Saved:
    """Random networks that happen to tell blobs from noise, calibrated on the past but for an offset."""
    images = torch.from_numpy(past.images(np.arange(past.n)))
    keep = past.labels == 1
    networks: list[Network] = []
    calibration: list[Calibration] = []
    for seed in range(3):
        network = build(CONFIG, 0, seed)
        said = logits(network, images, torch.empty(len(images), 0)).numpy()
        scale = float(np.sign(said[keep].mean() - said[~keep].mean()) / said.std())
        with torch.no_grad():
            network.verdict.weight.mul_(scale)
            network.verdict.bias.sub_(float(said.mean())).mul_(scale)
        said = (said - said.mean()) * scale
        platt = fit_platt(said, keep)
        networks.append(network)
        calibration.append(Calibration(slope=platt.slope, offset=platt.offset + wrong_by))
    limit = float(1 / (1 + np.exp(-wrong_by + 1)))
    manifest = Manifest(
        kind="particle",
        members=(CONFIG,) * 3,
        features=(),
        preparation=past.settings.model_copy(update={"box": BOX}),
        calibration=tuple(calibration),
        threshold=limit,
        review=(limit, limit),
        operating_point={
            "bound": 0.03,
            "level": "project",
            "limit": limit,
            "method": "split conformal over projects",
            "groups": 19,
        },
        prevalence=float(keep.mean()),
        split_by="micrograph",
        training_groups=("old",),
        calibration_groups=("old",),
    )
    made = Ensemble(manifest, (networks[0], networks[1], networks[2]))
    return saved(made, folder, "# Past\n")


def clicks(project: PreparedSet, file: Path, n: int) -> Path:
    """A CSV of the first ``n`` images of the set's source with their true labels."""
    lines = ["stack,index,label"]
    for name, label in zip(project.table["image"].to_pylist()[:n], project.labels, strict=False):
        frame, stack = name.split("@")
        lines.append(f"{stack},{int(frame)},{label}")
    file.write_text("\n".join(lines) + "\n")
    return file


def test_clicks_are_found_in_the_set_through_its_source(
    project: PreparedSet, tmp_path: Path
) -> None:
    found = labels_from(project, clicks(project, tmp_path / "c.csv", 20))
    assert (found[:20] == project.labels[:20]).all()
    assert (found[20:] == -1).all()
    (tmp_path / "other.csv").write_text("stack,index,label\nelsewhere.mrcs,1,1\n")
    with pytest.raises(SelectionError):
        labels_from(project, tmp_path / "other.csv")


def test_nine_clicks_mend_a_calibration_and_keep_the_votes_within_the_promise(
    past: PreparedSet, project: PreparedSet, tmp_path: Path
) -> None:
    before = ensemble(past, tmp_path / "before", wrong_by=2.5)
    record = adapt(
        before.path,
        project.path,
        tmp_path / "after",
        Settings(),
        labels=clicks(project, tmp_path / "c.csv", 9),
    )
    after = Ensemble.load(tmp_path / "after")
    sides = record["tables"]["the set's own labels of other images"]
    assert sides["before"]["images"] == project.n - 9
    assert sides["after"]["log_loss"] < sides["before"]["log_loss"]
    assert sides["after"]["ece"] < sides["before"]["ece"]
    assert sum(record["labels"].values()) == 9

    images, nothing = project.images(np.arange(project.n)), np.empty((project.n, 0), np.float32)
    limit = after.manifest.operating_point["limit"]
    assert isinstance(limit, float)
    at_limit = float(np.float32(limit))
    old, new = (e.judge(images, nothing, everyone=True).score for e in (before, after))
    differ = (old >= before.threshold) != (new >= at_limit)
    assert differ.mean() < 0.01  # the limit's own image: rounding aside, the same votes
    assert after.threshold <= at_limit
    assert after.manifest.operating_point["level"] == "project"
    assert "recalibrated" in str(after.manifest.operating_point["method"])
    assert "new/a.mrc" in after.manifest.calibration_groups or len(
        after.manifest.calibration_groups
    ) > len(before.manifest.calibration_groups)
    assert (tmp_path / "after" / "card.md").read_text().startswith("# Adapted to one project")


def test_twenty_clicks_draw_a_line_of_the_projects_own_and_say_what_it_costs(
    past: PreparedSet, project: PreparedSet, tmp_path: Path
) -> None:
    before = ensemble(past, tmp_path / "before", wrong_by=2.5)
    low = before.with_line(float(np.float32(0.3)), (0.3, 0.3))  # lets most junk through
    low.save(tmp_path / "low", "")
    record = adapt(
        tmp_path / "low",
        project.path,
        tmp_path / "after",
        Settings(),
        labels=clicks(project, tmp_path / "c.csv", 20),
    )
    sides = record["tables"]["the set's own labels of other images"]
    assert sides["after"]["accuracy"] > sides["before"]["accuracy"] + 0.03
    assert sides["after"]["false_negative_rate"] <= 0.06
    point = Ensemble.load(tmp_path / "after").manifest.operating_point
    assert isinstance(point["expected_here"], dict)
    assert point["expected_here"]["lost"] == pytest.approx(0.02, abs=0.04)
    assert "whose line 20 labels drew" in str(point["method"])
    images, nothing = project.images(np.arange(project.n)), np.empty((project.n, 0), np.float32)
    old = low.judge(images, nothing, everyone=True).score
    new = Ensemble.load(tmp_path / "after").judge(images, nothing, everyone=True)
    kept = new.score >= np.float32(record["threshold"])
    assert kept.sum() < (old >= np.float32(0.3)).sum()  # verdicts did change
    assert old[kept].min() >= old[~kept].max() - 1e-6  # and no image was put before a better one


def test_without_labels_the_share_of_keeps_is_found_and_networks_stay(
    past: PreparedSet, project: PreparedSet, tmp_path: Path
) -> None:
    before = ensemble(past, tmp_path / "before")
    record = adapt(before.path, project.path, tmp_path / "after", Settings())
    share = record["prevalence"]
    assert share["low"] <= share["estimate"] <= share["high"]
    assert record["change"]["stretch"] == pytest.approx(1, abs=1e-3)
    assert list(record["tables"]) == ["the set's own labels of other images"]
    after = Ensemble.load(tmp_path / "after")
    assert after.manifest.calibration_groups == before.manifest.calibration_groups
    for one, other in zip(before.networks, after.networks, strict=True):
        assert torch.equal(one.verdict.weight, other.verdict.weight)
    with pytest.raises(InputError, match="exists already"):
        adapt(before.path, project.path, tmp_path / "after", Settings())


def test_hundreds_of_labels_give_the_project_a_bound_of_its_own(
    past: PreparedSet, project: PreparedSet, tmp_path: Path
) -> None:
    before = ensemble(past, tmp_path / "before", wrong_by=1.0)
    record = adapt(
        before.path,
        project.path,
        tmp_path / "after",
        Settings(),
        labels=clicks(project, tmp_path / "c.csv", project.n),
    )
    assert record["change"] is None
    assert record["operating_point"]["level"] == "image"
    assert record["operating_point"]["labels_here"]["lost"] <= 0.03 * record["labels"]["keep"]
    assert list(record["tables"]) == ["labels given, each left out in turn"]


def test_within_a_project_its_context_is_adapted_and_the_rest_stays(
    past: PreparedSet, project: PreparedSet, tmp_path: Path
) -> None:
    plain = ensemble(past, tmp_path / "before", wrong_by=2.5)
    before = with_heads(tmp_path / "before")
    adapt(tmp_path / "before", project.path, tmp_path / "after", Settings())
    after = Ensemble.load(tmp_path / "after")
    assert after.manifest.calibration == plain.manifest.calibration
    assert after.threshold == plain.threshold
    old, new = before.manifest.context, after.manifest.context
    assert old is not None
    assert new is not None
    assert new.calibration != old.calibration
    judges = [
        e.with_profile(profile_set(project, np.arange(project.n), e)) for e in (before, after)
    ]
    assert judges[1].threshold == new.threshold
    assert judges[1].uses_profile
