"""Ingestion, by Ray and without: rows reconcile, and how the work was divided leaves no trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from cryoray.engine.datasource import (
    PreparedDatasource,
    RowRangeDatasource,
    ShardDatasource,
    to_rows,
)
from cryoray.errors import InputError, QuarantineError, SettingsError
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, Progress
from cryoray.settings import PreparationSettings, RuntimeSettings, Settings
from cryoray.verbs.ingest import ingest, plan_sources
from tests.preparation.sources import particles, write_source


def settings(cluster: RuntimeSettings | None = None, **changes: object) -> Settings:
    chosen = {"preparation": {"box": 32}, "range_mib": 1, **changes}
    return Settings(runtime=cluster or RuntimeSettings(), ingest=chosen)


def projects(folder: Path) -> list[Path]:
    """Two projects of 140 and 90 rows, the second dark; four rows cannot be used."""
    bad = particles(70, 64, seed=1)
    bad[[3, 60]] = np.nan
    one = write_source(folder / "one", [particles(70, 64), bad])
    (folder / "one" / "labels.csv").write_text(
        "stack,index,selected\n"
        + "\n".join(f"{name.split('@')[1]},{int(name.split('@')[0])},{row % 2}"
                    for row, name in enumerate(one.images))
    )  # fmt: skip
    extra = ("000002@gone.mrcs m 1 1 1 4", "000001@a.mrcs m 1 1 1 4")
    write_source(folder / "two", [particles(88, 48, sign=-1)], extra=extra)
    return [folder / "one", folder / "two"]


def test_sources_become_a_set_whose_books_balance(tmp_path: Path) -> None:
    progress: list[Progress] = []
    events: list[Event] = []
    out = ingest(
        projects(tmp_path),
        tmp_path / "set",
        settings(),
        on_progress=progress.append,
        on_event=events.append,
    )
    made = PreparedSet.open(out)
    names = ["ingest.planned", "ingest.planned", "ingest.quarantined", "ingest.done"]
    assert [event.name for event in events] == names
    assert events[2].data == {
        "rows": 4,
        "… of … pixels are NaN or infinite": 2,
        "there is no such stack": 1,
        "is the same image as row …": 1,
    }
    assert events[-1].data["row_counts"] == "230 rows in = 226 out + 4 quarantined"
    assert [event.data["contrast"] for event in events[:2]] == ["bright", "dark"]
    prepared = [step.done for step in progress if step.stage == "prepare"]
    assert prepared == sorted(prepared)
    assert prepared[0] == 2
    assert prepared[-1] == progress[0].total == 230
    assert len(prepared) == 4
    assert [step.note for step in progress[:4:3]] == [
        "0.0 of 0.0 GB, 2 quarantined",
        "0.0 of 0.0 GB, 4 quarantined",
    ]
    assert made.n == 226
    assert made.counts["keep"] + made.counts["discard"] == 138
    assert made.counts["unlabelled"] == 88
    assert made.table["project"].to_pylist() == ["one"] * 138 + ["two"] * 88
    reasons = pq.read_table(out / "quarantine.parquet")["reason"].to_pylist()
    assert len(reasons) == 4
    assert "gone.mrcs" in reasons[2]
    middle = made.images(np.arange(226))[:, 14:19, 14:19].mean((1, 2))
    assert middle[:138].mean() > 0.3
    assert middle[138:].mean() > 0.3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "set", "two"]


@pytest.mark.ray
def test_the_set_is_the_same_however_and_by_whom_the_work_is_done(
    ray_cluster: RuntimeSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = projects(tmp_path)
    ingest(sources, tmp_path / "alone", settings())
    ingest(sources, tmp_path / "coarse", settings(range_mib=64))
    ingest(sources, tmp_path / "ray", settings(ray_cluster, local_max_mib=0))
    monkeypatch.setattr(ShardDatasource, "TASKS_PER_CORE", 0)
    ingest(sources, tmp_path / "one task", settings(ray_cluster, local_max_mib=0))
    for name in ("coarse", "ray", "one task"):
        for file in (tmp_path / "alone").iterdir():
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes(), name


@pytest.mark.long
def test_a_small_source_starts_no_ray_and_leaves_torch_as_it_was(tmp_path: Path) -> None:
    write_source(tmp_path / "one", [particles(3)])
    words = "import sys, torch; from pathlib import Path; import cryoray.verbs.ingest as i"
    words += "; from cryoray.settings import load; n = torch.get_num_threads()"
    words += (
        f"; i.ingest([Path({str(tmp_path / 'one')!r})], Path({str(tmp_path / 'set')!r}), load())"
    )
    words += "; assert 'ray' not in sys.modules; assert torch.get_num_threads() == n"
    subprocess.run([sys.executable, "-c", words], check=True)
    assert PreparedSet.open(tmp_path / "set").n == 3


def test_too_many_bad_rows_end_the_job_with_their_list(tmp_path: Path) -> None:
    write_source(tmp_path / "bad", [np.zeros((120, 32, 32), np.float32), particles(30, 32)])
    with pytest.raises(QuarantineError, match="120 of 150 rows") as raised:
        ingest([tmp_path / "bad"], tmp_path / "set", settings())
    assert raised.value.file is not None
    assert len(pq.read_table(raised.value.file)) == 120
    assert not (tmp_path / "set").exists()
    source = write_source(tmp_path / "gone", [particles(3)])
    source.stacks[0].unlink()
    with pytest.raises(QuarantineError, match="3 of 3 rows"):
        ingest([tmp_path / "gone"], tmp_path / "set", settings())


def test_a_folder_of_something_else_is_refused_before_any_work(tmp_path: Path) -> None:
    write_source(tmp_path / "one", [particles(3)])
    events: list[Event] = []
    with pytest.raises(InputError, match="exists and is not a prepared set"):
        ingest([tmp_path / "one"], tmp_path / "one", settings(), on_event=events.append)
    assert not events


def test_a_source_given_twice_is_refused(tmp_path: Path) -> None:
    write_source(tmp_path / "one", [particles(3)])
    sources = [tmp_path / "one", tmp_path / "one" / "particles.star"]
    with pytest.raises(InputError, match="is given twice"):
        ingest(sources, tmp_path / "set", settings())


@pytest.mark.long
def test_what_is_new_is_added_alone(tmp_path: Path) -> None:
    one, two = projects(tmp_path)
    together = ingest([one, two], tmp_path / "together", settings())
    out = ingest([one], tmp_path / "set", settings())
    events: list[Event] = []
    more = settings(add=True)
    ingest([one, two], out, more, on_event=events.append)
    assert [(event.data["project"], event.data["rows"]) for event in events[:2]] == [
        ("one", 0),
        ("two", 90),
    ]
    assert events[-1].data["rows_in"] == 90
    for file in together.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    digest = PreparedSet.open(out).digest
    ingest([one, two], out, more)  # a second time there is nothing to do
    assert PreparedSet.open(out).digest == digest


def test_stacks_that_a_source_gained_are_a_new_part(tmp_path: Path) -> None:
    first = particles(30, seed=1)
    write_source(tmp_path / "day", [first])
    out = ingest([tmp_path / "day"], tmp_path / "set", settings())
    write_source(tmp_path / "day", [first, particles(20, seed=2)])  # rows of a and b alternate now
    ingest([tmp_path / "day"], out, settings(add=True))
    made = PreparedSet.open(out)
    assert [part["counts"]["rows"] for part in made.parts] == [30, 20]
    assert made.table["image"].to_pylist() == [
        f"{i:06d}@{stack}.mrcs" for stack, n in (("a", 30), ("b", 20)) for i in range(1, n + 1)
    ]


def test_a_set_is_only_added_to_as_it_was_made(tmp_path: Path) -> None:
    one, two = projects(tmp_path)
    out = ingest([one], tmp_path / "set", settings())
    finer = settings(add=True, preparation={"box": 48})
    with pytest.raises(SettingsError, match="set: was made with box 32, and 48 is requested"):
        ingest([two], out, finer)
    with pytest.raises(InputError, match="is not a prepared set"):
        ingest([two], tmp_path / "other", settings(add=True))


@pytest.mark.long
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_an_ingestion_killed_at_any_moment_goes_on_where_it_stopped(
    tmp_path: Path, every: int
) -> None:
    """Of all moments at which files are written, renamed, linked or removed, every so manieth."""
    write_source(tmp_path / "one", [particles(150, 48, seed=i) for i in range(3)])
    extra = ("000009@a.mrcs m 1 1 1 4",)
    write_source(tmp_path / "two", [particles(60, 48, seed=7)], extra=extra)
    said = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed.py"), tmp_path, str(every)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    moments, resumed = (int(word) for word in said.stdout.split())
    assert moments > 50 / every
    assert resumed > moments / 2


def test_projects_are_named_apart(tmp_path: Path) -> None:
    for folder in ("a/job", "b/job", "c"):
        write_source(tmp_path / folder, [particles(3)])
    chosen = Settings(ingest={"preparation": {"contrast": "bright"}}).ingest
    planned = plan_sources([tmp_path / name for name in ("a/job", "b/job", "c")], chosen)
    assert [part.project for part in planned] == [
        str(tmp_path / "a/job/particles.star"),
        str(tmp_path / "b/job/particles.star"),
        "c",
    ]
    together = plan_sources([tmp_path / "a"], chosen.model_copy(update={"group": "mine"}))
    assert [part.project for part in together] == ["mine"]


@pytest.mark.ray
def test_blocks_are_what_prepare_range_returns_and_tasks_are_small(
    ray_cluster: RuntimeSettings, tmp_path: Path
) -> None:
    images = particles(40)
    images[7] = np.nan
    chosen = PreparationSettings(box=32, features=())
    planned = plan(write_source(tmp_path / "x", [images]), chosen, 64)
    datasource = RowRangeDatasource(planned.ranges, chosen)
    dataset = ray.data.read_datasource(datasource, override_num_blocks=len(datasource))
    assert [str(kind) for kind in dataset.schema().types][-1] == "string"  # not pickled objects
    (batch,) = dataset.iter_batches(batch_size=None, batch_format="numpy")
    rows, expected = to_rows(batch), prepare_range(planned.ranges[0], chosen)
    np.testing.assert_array_equal(rows.rows, expected.rows)
    np.testing.assert_array_equal(rows.images, expected.images)
    assert rows.features.shape == (39, 0)
    assert rows.quarantined == expected.quarantined
    (task,) = datasource.get_read_tasks(200)
    assert len(ray.cloudpickle.dumps(task)) < 20_000


@pytest.mark.ray
def test_a_set_is_read_in_parts_for_whoever_scores_it(
    ray_cluster: RuntimeSettings, tmp_path: Path
) -> None:
    out = ingest(projects(tmp_path), tmp_path / "set", settings(ray_cluster))
    made, names = PreparedSet.open(out), ("phase_shift", "defocus")
    some = np.arange(5, 200, 2)
    datasource = PreparedDatasource([(out, some)], names, rows_per_task=30)
    dataset = ray.data.read_datasource(datasource, override_num_blocks=len(datasource))
    batches = list(dataset.iter_batches(batch_size=None, batch_format="numpy"))
    rows = np.concatenate([batch["row"] for batch in batches])
    assert sorted(rows.tolist()) == some.tolist()
    images = np.concatenate([batch["image"] for batch in batches])
    np.testing.assert_array_equal(images, made.images(rows))
    features = np.concatenate([batch["features"] for batch in batches])
    np.testing.assert_array_equal(features, made.feature_matrix(names)[rows])
