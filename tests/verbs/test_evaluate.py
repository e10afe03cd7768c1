"""An ensemble is measured on groups it has not seen, with its own threshold, each image once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cryoray.errors import EnsembleError, InputError, SelectionError
from cryoray.metrics import accuracy
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import REASONS, Event, Progress
from cryoray.settings import RuntimeSettings, Settings
from cryoray.verbs.evaluate import evaluate
from cryoray.verbs.measuring import reasons_named
from cryoray.verbs.suitability import check_same_preparation, unseen
from tests.verbs.untrained import PREPARATION, make_ensemble, make_set, undecided


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
    reasons = reasons_named(examples, predictions)["reasons"]
    assert reasons["named"] == {"empty": {"empty": 0, "ice": 10}, "ice": {"empty": 0, "ice": 20}}
    assert (reasons["n"], reasons["right"]) == (30, pytest.approx(2 / 3))
    nothing = predictions.set_column(1, "reason", pa.nulls(examples.n, pa.string()))
    assert reasons_named(examples, nothing) == {}


def test_images_of_another_look_are_refused_by_name(tmp_path: Path) -> None:
    judge = make_ensemble(tmp_path / "ensemble")
    other_box = make_set(tmp_path / "s", preparation=PREPARATION.model_copy(update={"box": 24}))
    with pytest.raises(EnsembleError, match=r"prepared with box 24.*ensemble with box 32"):
        check_same_preparation(judge, other_box)
    same = make_set(tmp_path / "d", preparation=PREPARATION.model_copy(update={"diameter": 40.0}))
    check_same_preparation(judge, same)
    same.kind = "class2d"
    with pytest.raises(EnsembleError, match="judges particle images"):
        check_same_preparation(judge, same)


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
    one_kind = make_set(tmp_path / "one-kind", labels=(1,))
    with pytest.raises(SelectionError, match="all 80 labels in the groups to judge say keep"):
        evaluate(judge, one_kind.path, out, Settings())
    (out / "thesis").mkdir(parents=True)
    with pytest.raises(InputError, match="exists and is not an evaluation"):
        evaluate(judge, examples.path, out, Settings())
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out"]


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
    for name in ("metrics.json", "predictions.parquet", "older.png"):
        (out / name).touch()
    chosen = {"ablate": bool(features), "shuffles": 2, "replace": True}
    settings = Settings(runtime=ray_cluster, evaluate=chosen)
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
