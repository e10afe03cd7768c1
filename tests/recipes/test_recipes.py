"""The ensembles that ship are made by one flow, and a card says on what their numbers rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.boosting.calibration import Platt
from cryoray.boosting.operating_point import OperatingPoint
from cryoray.models import registry
from cryoray.models.ensemble import Ensemble
from cryoray.models.networks import build
from cryoray.models.rounds import Boosted
from cryoray.preparation.features import feature_names
from cryoray.recipes import build as ensembles
from cryoray.recipes import class2d as ensemble_class2d
from cryoray.recipes import class3d as ensemble_class3d
from cryoray.recipes import particle as ensemble_particle
from cryoray.recipes.relion_jobs import labelled
from cryoray.simulation.classes import simulate_classes
from tests.examples import save_ensemble, with_heads


def test_the_target_finds_the_kinds_it_can_make() -> None:
    assert {path.name for path in registry.SHIPPED.iterdir()} <= ensembles.builders().keys()


def test_mixed_classes_of_relion_have_no_label_and_tiny_ones_are_never_good() -> None:
    good = np.array([80, 51, 50, 34, 33, 0, 9, 5, 10, 2])
    bad = np.array([20, 49, 50, 66, 67, 100, 0, 4, 0, 7])
    assert labelled(good, bad).tolist() == [1, 1, -1, -1, 0, 0, -1, -1, 1, 0]


def test_what_judges_maps_learns_from_images_alone_in_the_whole_box(tmp_path: Path) -> None:
    settings = ensemble_class3d.settings_of()
    how = settings.ingest.preparation
    source = simulate_classes(tmp_path / "classes", 0, 1)
    made = ensemble_class2d.prepared([source], tmp_path / "set", how)
    sets = {ensemble_class2d.SIMULATED: [made], ensemble_class2d.RELION: []}
    names = ("a", "b")
    sets["TcdA1"] = [ensemble_class2d.prepared([source], tmp_path / n, how) for n in names]
    examples, _, _ = ensemble_class2d.learned_from(sets, settings)
    assert examples.names == ()
    assert examples.features.shape == (len(examples), 0)
    assert {s.settings.geometry for s in examples.sets} == {"box"}
    assert examples.particles is not None  # by which what is lost is counted


def test_features_are_comparisons_within_the_job_and_need_no_particles() -> None:
    names = ensemble_class2d.features()
    assert set(names) <= set(feature_names("class2d"))
    assert "class_distribution_rank" in names
    assert "estimated_resolution" not in names
    assert not any(name.startswith("particle_number") for name in names)


class Table:
    """Examples of three proteins, as far as numbers on them are concerned."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = (rng.random(600) < 0.5).astype(np.int8)
        self.projects = np.repeat(
            np.array(["simulated-001", "simulated-002", "TcdA1"], object), 200
        )
        self.particles = rng.random(600)

    def groups(self, _: str) -> np.ndarray:
        return self.projects


def _boosted(probabilities: np.ndarray) -> Boosted:
    config = ensemble_class2d.MEMBERS[0]
    network, platt = build(config, 1, 0), Platt(1.0, 0.0)
    return Boosted(
        networks=(network, network, network),
        calibration=(platt, platt, platt),
        point=OperatingPoint(0.5, 0.03, "image", "", 1, 0.0, 0.5),
        review=(0.4, 0.6),
        probabilities=probabilities.astype(np.float32),
        suspects=np.zeros(len(probabilities), bool),
        bound={},
    )


def test_the_threshold_for_a_held_out_protein_is_none_of_its_own_doing() -> None:
    table, settings = Table(), ensemble_class2d.settings_of()
    rng = np.random.default_rng(1)
    good = np.clip(rng.normal(0.3 + 0.4 * table.labels[:, None], 0.12, (600, 3)), 0, 1)
    before = ensemble_class2d.unseen(_boosted(good), table, "TcdA1", settings)  # type: ignore[arg-type]
    worse = good.copy()
    worse[400:] = 1 - worse[400:]
    after = ensemble_class2d.unseen(_boosted(worse), table, "TcdA1", settings)  # type: ignore[arg-type]
    assert before["threshold"] == after["threshold"]
    assert before["n"] == after["n"] == 200
    assert before["auroc"] > 0.9 > 0.1 > after["auroc"]
    lost = (table.labels[400:] == 1) & (np.median(good[400:], axis=1) < before["threshold"])
    kept = table.particles[400:]
    assert before["particles_lost"] == pytest.approx(
        kept[lost].sum() / kept[table.labels[400:] == 1].sum()
    )


def test_a_protein_that_is_held_out_is_not_learned_from_and_relions_classes_count_more(
    tmp_path: Path,
) -> None:
    settings = ensemble_class2d.settings_of()
    how = settings.ingest.preparation
    source = simulate_classes(tmp_path / "classes", 0, 1)
    kinds = {
        ensemble_class2d.SIMULATED: ["s1"],
        ensemble_class2d.RELION: ["r1", "r2"],
        **{protein: [protein] for protein in ensemble_class2d.HUMAN},
    }
    sets = {
        kind: [ensemble_class2d.prepared([source], tmp_path / name, how) for name in names]
        for kind, names in kinds.items()
    }
    examples, level, times = ensemble_class2d.learned_from(sets, settings, without="TcdA1")
    of = examples.groups("project")
    assert level == "project"
    assert len(times) == len(examples)
    often = {name: set(times[of == name].tolist()) for name in np.unique(of)}
    assert often["s1"] == {1}
    assert often["beta-galactosidase"] == {12}
    mine = np.isin(of, ["r1", "r2"])
    total = ensemble_class2d.RELION_WEIGHT * mine.sum()
    for label in (0, 1):
        count = times[mine & (examples.labels == label)].sum()
        assert count == pytest.approx(total / 2, rel=0.2)
    everything, _, _ = ensemble_class2d.learned_from(sets, settings)
    assert "TcdA1" in everything.groups("project")


def test_the_card_says_first_on_how_many_real_proteins_each_number_rests() -> None:
    row = {
        "n": 150,
        "keep": 67,
        "auroc": 0.9,
        "accuracy": 0.8,
        "false_negative_rate": 0.02,
        "particles_lost": 0.01,
        "threshold": 0.4,
    }
    rows, lost = {"TcdA1": row, "simulated proteins": row}, np.array([0.0, 0.02, 0.05])
    text = ensemble_class2d.card(rows, lost, ensemble_class2d.settings_of())
    assert "**Real proteins: 1**" in text.split("\n\n")[1]
    assert "| TcdA1 | 150 | 67 | 0.900 | 0.800 | 2.0% | 1.0% |" in text
    assert "no real protein" in text
    assert "2 of the 3 simulated proteins lost at most 3%" in text


@pytest.mark.long
def test_a_build_stops_and_goes_on_and_writes_an_ensemble_that_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble_class2d, "PROJECTS", 3)
    monkeypatch.setattr(ensemble_class2d, "JOBS", 1)
    monkeypatch.setattr(ensemble_class2d, "RELION_JOBS", 0)
    monkeypatch.setattr(ensemble_class2d.settings_of, "__defaults__", (1, 0))
    made = ensemble_class2d.build(tmp_path / "class2d", tmp_path / "work", None)
    weights = (made / "d1.safetensors").read_bytes()
    ensemble = Ensemble.load(made)
    assert ensemble.kind == "class2d"
    assert (made / "card.md").read_text().startswith("# 2D classes: what its numbers rest on")
    again = ensemble_class2d.build(tmp_path / "class2d", tmp_path / "work", None)
    assert (again / "d1.safetensors").read_bytes() == weights
    assert Ensemble.load(again).digest == ensemble.digest


def test_the_particle_card_has_a_row_by_profile_and_one_of_images_alone(tmp_path: Path) -> None:
    save_ensemble(tmp_path / "e")
    ensemble = with_heads(tmp_path / "e")
    context = ensemble.manifest.context
    assert context is not None
    point = {"bound": 0.03, "method": "conformal risk control over projects", "policy": "expected"}
    manifest = ensemble.manifest.model_copy(
        update={"context": context.model_copy(update={"operating_point": point})}
    )
    ensemble.manifest = manifest
    sort = np.repeat(["project-01", "EMPIAR-10017", "micassess-18a", "micassess-18b"], 10)
    keep = np.isin(sort, ["project-01", "EMPIAR-10017"]) & (np.arange(40) % 2 == 0)
    said = ensemble_particle.HeldOut(
        project=sort.astype(object),
        keep=keep,
        score=np.where(keep, 0.9, 0.2).astype(np.float32),
        alone=np.full(40, 0.9, np.float32),
        kind=np.where(sort == "project-01", np.where(keep, "particle", "ice"), "").astype(object),
    )
    card = ensemble_particle._card(ensemble, said)
    rows = [line.split(" | ") for line in card.splitlines() if line.startswith("| ")]
    kinds = [(row[0].strip("| "), row[4]) for row in rows[1:]]
    assert kinds[0] == ("EMPIAR-10017, real, denoised, 15 micrographs", "by profile")
    assert kinds[4] == ("micassess, real, no protein, 2 groups", "by profile")
    assert [kind for _, kind in kinds] == ["by profile", "alone"] * 3
    assert [row[5] for row in rows[1:]] == ["1.000", "0.500", "1.000", "0.500", "1.000", "0.000"]
    assert [row[7] for row in rows[1:]] == ["0.0%", "100.0%"] * 3
    assert "ice 100%" in card


def test_what_ships_loads_and_is_small_and_particles_are_judged_within_projects() -> None:
    size = sum(file.stat().st_size for file in registry.SHIPPED.rglob("*") if file.is_file())
    assert size < 15 << 20
    ensemble = Ensemble.load(registry.SHIPPED / "particle")
    context = ensemble.manifest.context
    assert context is not None
    assert (
        {*context.operating_points} == {*ensemble.manifest.operating_points} == {"expected", "each"}
    )
    # Stripes look like no project of training, and noise like one without particles.
    noise = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    stripes = np.broadcast_to(6 * np.sign(np.sin(np.arange(64) / 2)), (64, 64, 64))
    nothing = np.empty((64, 0), np.float32)
    familiar = [
        ensemble.with_profile(ensemble.profiled(ensemble.embed(images, nothing))).uses_profile
        for images in (noise, stripes.astype(np.float32) + 0.1 * noise)
    ]
    assert familiar == [True, False]
