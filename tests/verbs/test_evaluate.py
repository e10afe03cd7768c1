"""An ensemble is measured on groups it has not seen, with its own threshold, each image once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryoray.errors import EnsembleError, InputError, SelectionError, SettingsError
from cryoray.formats.mrc import StackWriter
from cryoray.formats.source import open_source
from cryoray.metrics import accuracy
from cryoray.models.ensemble import Calibration, Ensemble, Manifest
from cryoray.models.networks import NetworkConfig, build
from cryoray.preparation.plan import plan
from cryoray.preparation.prepared import PreparedSet
from cryoray.preparation.shards import Part, divide, prepare_shard
from cryoray.preparation.writing import write_set
from cryoray.records import REASONS, Event, OnEvent, OnProgress, Progress
from cryoray.settings import IngestSettings, PreparationSettings, RuntimeSettings, Settings
from cryoray.verbs.evaluate import (
    _reasons,
    check_same_look,
    cross_validate,
    evaluate,
    unseen,
)

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
) -> Ensemble:
    """Three networks as they are before training: their opinions differ, and are repeatable."""
    networks = tuple(build(SMALL, len(features), seed + i) for i in range(3))
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
    return Ensemble(manifest, networks).save(out, "# Untrained\n")


def undecided(examples: PreparedSet, folder: Path, **options: object) -> float:
    """A threshold at which an ensemble keeps about half."""
    judge = make_ensemble(folder, **options)
    every = np.arange(examples.n)
    features = examples.feature_matrix(judge.features)
    return float(np.median(judge.judge(examples.images(every), features, everyone=True).score))


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return make_set(tmp_path_factory.mktemp("sets") / "three")


def test_groups_that_the_ensemble_knows_are_not_new(examples: PreparedSet, tmp_path: Path) -> None:
    by_project = make_ensemble(tmp_path / "p", knows=("a", "c"))
    assert set(examples.groups("project")[unseen(by_project, examples)]) == {"b"}
    by_micrograph = make_ensemble(tmp_path / "m", knows=("a/mic0.mrc",), split_by="micrograph")
    new = unseen(by_micrograph, examples)
    assert new.sum() == 100
    assert "a/mic0.mrc" not in set(examples.groups("micrograph")[new])


def test_reasons_named_are_held_against_the_true_ones(tmp_path: Path) -> None:
    examples = make_set(tmp_path / "set")
    file = examples.path / "particles.parquet"
    true = [REASONS[i % 2] if i < 40 else None for i in range(examples.n)]  # empty or ice
    table = pq.read_table(file)
    at = table.schema.get_field_index("reason")
    pq.write_table(table.set_column(at, "reason", pa.array(true, pa.string())), file)
    examples = PreparedSet.open(examples.path)
    said = ["ice" if i % 4 else None for i in range(examples.n)]
    rows = np.arange(examples.n)[::-1]
    predictions = pa.table(
        {"row": rows, "reason": pa.array(said, pa.string()).take(pa.array(rows))}
    )
    reasons = _reasons(examples, predictions)["reasons"]
    assert reasons["named"] == {"empty": {"empty": 0, "ice": 10}, "ice": {"empty": 0, "ice": 20}}
    assert (reasons["n"], reasons["right"]) == (30, pytest.approx(2 / 3))
    nothing = predictions.set_column(1, "reason", pa.nulls(examples.n, pa.string()))
    assert _reasons(examples, nothing) == {}


def test_images_of_another_look_are_refused_by_name(tmp_path: Path) -> None:
    judge = make_ensemble(tmp_path / "ensemble")
    other_box = make_set(tmp_path / "s", preparation=PREPARATION.model_copy(update={"box": 24}))
    with pytest.raises(EnsembleError, match=r"prepared with box 24.*ensemble with box 32"):
        check_same_look(judge, other_box)
    same = make_set(tmp_path / "d", preparation=PREPARATION.model_copy(update={"diameter": 40.0}))
    check_same_look(judge, same)
    same.kind = "class2d"
    with pytest.raises(EnsembleError, match="judges particle images"):
        check_same_look(judge, same)


def test_what_cannot_be_evaluated_is_refused_in_a_sentence(
    examples: PreparedSet, tmp_path: Path
) -> None:
    everything = make_ensemble(tmp_path / "all", knows=("a", "b", "c")).path
    judge = make_ensemble(tmp_path / "one").path
    out = tmp_path / "out"
    with pytest.raises(
        EnsembleError, match=r"every labelled group of this set; train with --hold-out"
    ):
        evaluate(everything, examples.path, out, Settings())
    unlabelled = make_set(tmp_path / "unlabelled", labels=(-1,))
    with pytest.raises(SelectionError, match="none of its images has a label"):
        evaluate(judge, unlabelled.path, out, Settings())
    with pytest.raises(SelectionError, match="none of its images has a label"):
        cross_validate(unlabelled.path, out, Settings(), train=never, folds=2)
    one_kind = make_set(tmp_path / "one-kind", labels=(1,))
    with pytest.raises(SelectionError, match="all 80 labels in the groups to judge say keep"):
        evaluate(judge, one_kind.path, out, Settings())
    (out / "thesis").mkdir(parents=True)
    with pytest.raises(InputError, match="exists and is no evaluation"):
        evaluate(judge, examples.path, out, Settings())
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


def never(*_: object, **__: object) -> Path:
    raise AssertionError("nothing should be trained")


def test_folds_that_cannot_be_made_are_refused_before_anything_is_trained(
    examples: PreparedSet, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="labels in 3 projects; ask for at most 3"):
        cross_validate(examples.path, tmp_path / "cv", Settings(), train=never, folds=4)
    comma = make_set(tmp_path / "comma", projects=("a,b", "c"))
    with pytest.raises(InputError, match="'a,b' has a comma"):
        cross_validate(comma.path, tmp_path / "cv", Settings(), train=never, folds=2)
    (tmp_path / "cv").mkdir()
    with pytest.raises(InputError, match="exists already"):
        cross_validate(examples.path, tmp_path / "cv", Settings(), train=never, folds=3)


@pytest.mark.ray
@pytest.mark.parametrize("features", [("defocus",), ()])
def test_evaluation_is_of_new_labelled_images_and_of_nothing_else(
    examples: PreparedSet,
    tmp_path: Path,
    ray_cluster: RuntimeSettings,
    features: tuple[str, ...],
) -> None:
    threshold = undecided(examples, tmp_path / "first", features=features)
    judge = make_ensemble(tmp_path / "ensemble", threshold=threshold, features=features)
    told: list[Progress] = []
    events: list[Event] = []
    out = tmp_path / "out"
    out.mkdir()
    for name in ("metrics.json", "older.png"):
        (out / name).touch()
    settings = Settings(runtime=ray_cluster, evaluate={"ablate": bool(features), "shuffles": 2})
    numbers = evaluate(
        judge.path, examples.path, out, settings, on_progress=told.append, on_event=events.append
    )

    new = np.flatnonzero((examples.groups("project") != "a") & (examples.labels >= 0))
    said = judge.judge(examples.images(new), examples.feature_matrix(features)[new], everyone=True)
    expected = accuracy.metrics(
        examples.labels[new] == 1,
        said.score,
        threshold=judge.threshold,
        review=said.verdict == "review",
        groups=examples.groups("project")[new],
    )
    for name in accuracy.SPREAD:
        assert numbers[name] == pytest.approx(expected[name], abs=1e-6), name
        assert numbers["spread"][name]["groups"] == 2
    assert 0.2 < numbers["false_negative_rate"] < 0.8
    assert numbers["n"] == 60
    assert numbers["left_out"] == 60
    assert json.loads((out / "metrics.json").read_text()) == numbers
    assert events[0].data == {"images": 60, "left_out_seen": 40, "left_out_unlabelled": 20}
    assert (told[-1].done, told[-1].total) == (60, 60)
    assert len(numbers["by_view"]["defocus"]) == 5
    assert numbers["prevalence"]["labelled"] == pytest.approx(2 / 3)
    assert numbers["bound_held"]["groups"] == 2
    if features:
        hidden = numbers["ablation"]["hidden"]
        assert hidden["both"]["auroc"] == pytest.approx(numbers["auroc"], abs=1e-3)
        assert hidden["image"]["auroc"] != hidden["both"]["auroc"]
        assert "defocus" in numbers["ablation"]["permutation"]["columns"]

    table = pq.read_table(out / "predictions.parquet")
    assert table["row"].to_pylist() == new.tolist()
    assert table["image"].to_pylist() == examples.table["image"].take(new).to_pylist()
    np.testing.assert_allclose(table["score"].to_numpy(), said.score, atol=1e-4)
    assert table["d3"].null_count == 0
    assert set(table["verdict"].to_pylist()) <= {"keep", "discard", "review"}

    page = (out / "report.html").read_text()
    assert "60 labelled particles of 2 projects" in page
    assert judge.digest in page
    assert not (out / "older.png").exists()
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


@pytest.mark.ray
def test_cross_validation_judges_each_image_once_by_an_ensemble_that_did_not_know_it(
    tmp_path: Path, ray_cluster: RuntimeSettings
) -> None:
    examples = make_set(tmp_path / "set", projects=("only",), micrographs=5, each=12)
    threshold = undecided(examples, tmp_path / "first")
    trained: list[str] = []

    def train(
        sets: Sequence[Path],
        out: Path,
        settings: Settings,
        *,
        on_progress: OnProgress,
        on_event: OnEvent,
    ) -> Path:
        if len(trained) == 1:
            trained.append("killed")
            raise KeyboardInterrupt
        held_out = set((settings.train.hold_out or "").split(","))
        knows = sorted(set(examples.groups("micrograph")) - held_out)
        shift = len(trained) / 1000
        features = ("defocus",) if settings.train.features is None else settings.train.features
        make_ensemble(out, knows, "micrograph", threshold + shift, settings.train.seed, features)
        trained.append(out.name)
        return out

    out = tmp_path / "cv"
    fit = {"epochs": 1, "batch": 32}
    settings = Settings(
        runtime=ray_cluster,
        evaluate={"ablate": True, "shuffles": 2},
        train={"fit": fit, "folds": 2},
    )
    with pytest.raises(KeyboardInterrupt):
        cross_validate(examples.path, out, settings, train=train, folds=2)
    assert not out.exists()
    numbers = cross_validate(examples.path, out, settings, train=train, folds=2)
    assert trained == ["fold-1", "killed", "fold-1", "fold-2", "fold-2"]

    table = pq.read_table(out / "predictions.parquet")
    labelled = np.flatnonzero(examples.labels >= 0)
    assert table["row"].to_pylist() == labelled.tolist()
    assert numbers["n"] == 45
    assert numbers["left_out"] == 15
    kept = table["score"].to_numpy() >= table["threshold"].to_numpy()
    good = table["label"].to_numpy(zero_copy_only=False)
    assert numbers["accuracy"] == pytest.approx(np.mean(kept == good))
    assert numbers["false_negative_rate"] == pytest.approx(np.mean(~kept[good]))

    folds = numbers["folds"]
    assert sorted(group for fold in folds for group in fold["groups"]) == sorted(
        f"only/mic{i}.mrc" for i in range(5)
    )
    assert sum(fold["n"] for fold in folds) == 45
    own = [Ensemble.load(out / f"fold-{i}").threshold for i in (1, 2)]
    assert [fold["threshold"] for fold in folds] == pytest.approx(own)
    assert len(set(own)) == 2
    assert numbers["spread_over_folds"]["auroc"]["folds"] == 2
    retrained = numbers["ablation"]["retrained"]
    assert list(retrained) == ["both", "image", "metadata"]
    assert {variant["n"] for variant in retrained.values()} == {45}
    assert retrained["both"]["accuracy"] == pytest.approx(numbers["accuracy"])
    assert len({variant["auroc"] for variant in retrained.values()}) == 3
    assert not Ensemble.load(out / "without-metadata" / "fold-1").features
    assert json.loads((out / "metrics.json").read_text()) == numbers
    assert "Cross-validation over micrographs" in (out / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.glob("cv*")) == ["cv"]
