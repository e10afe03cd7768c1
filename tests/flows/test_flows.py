"""What flows do between the verbs, without a server: microscope, a session's verdicts, comparison."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.utilities.callables import parameter_schema

from cryoray.errors import InputError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.source import Source, open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.records import Progress, Verdicts
from cryoray.report.blocks import Table
from cryoray.session.judging import place
from flows import classify, evaluate, facility_day, reporter
from flows.day_report import decisions_section, judged, truth, verdict_in_words
from flows.microscope import record
from tests.preparation.sources import particles, write_source


@pytest.fixture
def collection(tmp_path: Path) -> Source:
    """Two micrographs of 5 and 3 images whose rows alternate, with truth and a person's labels."""
    source = write_source(tmp_path / "day", [particles(5, seed=1), particles(3, seed=2)])
    for name, column in (("truth.csv", "keep"), ("labels.csv", "selected")):
        with (tmp_path / "day" / name).open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("stack", "index", column))
            for stack, frame in zip(source.stack, source.frame, strict=True):
                table.writerow((source.stacks[stack].name, frame + 1, (frame + stack) % 2))
    return source


def pixels(source: Source) -> np.ndarray:
    return np.concatenate(
        [
            read_frames(read_header(source.stacks[stack]), np.array([frame]))
            for stack, frame in zip(source.stack, source.frame, strict=True)
        ]
    )


def test_the_microscope_writes_each_micrograph_with_its_metadata(
    tmp_path: Path, collection: Source
) -> None:
    live = tmp_path / "live"
    seen = []
    for stack, rows in record(collection, live):
        again = open_source(stack.with_name(f"{stack.stem}_extract.star"))
        assert again.stacks == (stack,)
        np.testing.assert_array_equal(pixels(again), pixels(collection)[rows])
        np.testing.assert_array_equal(again.micrograph, collection.micrograph[rows])
        assert len(set(again.micrograph)) == 1
        for name, values in collection.metadata.items():
            np.testing.assert_array_equal(again.metadata[name], values[rows])
        np.testing.assert_array_equal(again.pixel_size, collection.pixel_size[rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(collection)))
    assert len(list(live.iterdir())) == 4


def test_the_microscope_can_record_a_bare_stack(tmp_path: Path, collection: Source) -> None:
    bare = open_source(collection.stacks[0])
    ((stack, rows),) = record(bare, tmp_path / "live")
    assert rows.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(pixels(open_source(stack)), pixels(bare))


def test_a_sessions_verdicts_are_put_in_the_order_of_the_collection(
    tmp_path: Path, collection: Source
) -> None:
    live, session = tmp_path / "live", tmp_path / "sessions" / "day"
    for stack, rows in record(collection, live):
        described = open_source(stack.with_name(f"{stack.stem}_extract.star"))
        good = np.flatnonzero(rows != len(collection) - 1)
        columns = {
            "verdict": np.full(len(good), "keep", object),
            "score": rows[good] / 10,
            **dict.fromkeys(("d1", "d2", "d3"), np.ones(len(good))),
        }
        bad = [(int(i), "flat") for i in np.flatnonzero(rows == len(collection) - 1)]
        verdicts = Verdicts.of(good, columns, bad)
        write_verdicts(place(live, session, stack), described, verdicts)
    table = judged(collection, session)
    assert table["row"].to_pylist() == list(range(7))
    np.testing.assert_allclose(table["score"], np.arange(7) / 10, rtol=1e-6)


def test_the_truth_is_found_by_stack_and_index(collection: Source) -> None:
    keep, kind = truth(collection)
    np.testing.assert_array_equal(keep, (collection.frame + collection.stack) % 2)
    assert set(kind) == {""}


def test_what_evaluation_judged_is_set_aside_with_its_labels(
    tmp_path: Path, collection: Source
) -> None:
    held_out = np.flatnonzero(collection.stack == 1)
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    pq.write_table(
        pa.table({"image": collection.images[held_out].tolist()}),
        evaluation / "predictions.parquet",
    )
    new = facility_day.set_aside.fn(collection.path.parent, evaluation, tmp_path / "out" / "new")
    source = open_source(new)
    np.testing.assert_array_equal(pixels(source), pixels(collection)[held_out])
    keep, _ = truth(source)
    np.testing.assert_array_equal(keep, truth(collection)[0][held_out])


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "set").mkdir()
    with pytest.raises(InputError, match=r"thesis\.tex"):
        facility_day.emptied(tmp_path)
    assert (tmp_path / "set").exists()
    (tmp_path / "thesis.tex").unlink()
    assert list(facility_day.emptied(tmp_path).iterdir()) == []


def test_a_form_names_the_ensemble_over_the_settings_that_it_has() -> None:
    fields = parameter_schema(classify.classify).model_dump()["properties"]
    assert "ensemble" in fields
    given = {"classify": {"review": False, "ensemble": "old"}, "registry": "there"}
    assert classify.with_ensemble(given, "new") == {
        "classify": {"review": False, "ensemble": "new"},
        "registry": "there",
    }
    assert classify.with_ensemble(None, None) == {}
    assert given["classify"] == {"review": False, "ensemble": "old"}


def test_a_day_says_how_far_it_is_and_about_how_long_it_takes() -> None:
    now = iter((0.0, 0.0, 20.0, 330.0))
    steps = facility_day.Steps(lambda: next(now))
    next(now)
    assert steps.line("past projects") == "1 of 7: past projects"
    assert steps.line("training") == "3 of 7: training, about 4 minutes left"
    assert steps.line("report") == "7 of 7: report, less than a minute left"


def test_kept_is_counted_by_the_forced_decision_and_review_beside_it() -> None:
    forced = np.array([True, True, True, False, False])
    review = np.array([False, True, True, True, False])
    section = decisions_section(forced, review)
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    assert table.rows == (
        ("forced decision, all images", "3", "2"),
        ("of these under review", "2", "1"),
        ("decided without a person", "1", "1"),
    )


def test_the_demo_says_why_it_is_less_right_than_people_hope() -> None:
    metrics = {"false_negative_rate": 0.004, "accuracy": 0.8325}
    words = verdict_in_words(metrics, {"broken": 40, "blurred": 20, "ice": 5, "empty": 1})
    assert "right about 83% of" in words
    assert "loses 0.4% of" in words
    assert words.endswith("broken 40, blurred 20, ice 5.")
    better = verdict_in_words({**metrics, "accuracy": 0.93}, {"broken": 4})
    assert better.endswith("good images.")


def test_only_plain_numbers_are_tabulated() -> None:
    metrics: dict[str, Any] = {"accuracy": 0.9, "n": 3, "auroc": None, "spread": {"accuracy": {}}}
    assert evaluate.numbers(metrics) == [
        {"metric": "accuracy", "value": 0.9},
        {"metric": "n", "value": 3},
    ]


@pytest.mark.parametrize(
    ("text", "made"), [("metrics-live", "metrics-live"), ("d1, fold 2 of 3", "d1-fold-2-of-3")]
)
def test_keys_of_artifacts(text: str, made: str) -> None:
    assert reporter.key(text) == made


def test_an_artifact_says_what_the_terminal_says() -> None:
    now = Progress(
        "prepare", 4096, 81920, note="1.1 of 21.5 GB, 1.05 GB/s, 19 s left, 3 quarantined"
    )
    assert reporter.summary(now) == (
        "prepare: 4,096 of 81,920 rows; 1.1 of 21.5 GB, 1.05 GB/s, 19 s left, 3 quarantined"
    )
    assert reporter.summary(Progress("judge", 7, None)) == "judge: 7 rows"


def test_the_server_that_a_flow_starts_answers_nobody_else(tmp_path: Path) -> None:
    """In a process of its own, which has not been given a server by this test's harness."""
    script = """
import os
import flows
import httpx
from prefect.server.api.server import SubprocessASGIServer
server = SubprocessASGIServer()
server.start(timeout=120)
try:
    url = f"{server.api_url}/flows/filter"
    word = tuple(os.environ["PREFECT_API_AUTH_STRING"].split(":"))
    print(httpx.post(url, json={}, trust_env=False).status_code)
    print(httpx.post(url, json={}, auth=word, trust_env=False).status_code)
finally:
    server.stop()
"""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
    }
    environment |= {
        "PREFECT_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["401", "200"]
