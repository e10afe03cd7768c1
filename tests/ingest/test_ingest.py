"""Ingest by Ray: rows reconcile, and how the work was divided leaves no trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from cryoray.errors import InputError, QuarantineError
from cryoray.ingest.pipeline import ingest, plan_sources
from cryoray.ingest.source import PreparedDatasource, RowRangeDatasource, to_rows
from cryoray.preparation.plan import plan
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Event, Progress
from cryoray.settings import PreparationSettings, RuntimeSettings, Settings
from tests.preparation.sources import particles, write_source

pytestmark = pytest.mark.ray


def settings(cluster: RuntimeSettings, **changes: object) -> Settings:
    chosen = {"preparation": {"box": 32}, "range_mib": 1, **changes}
    return Settings(runtime=cluster, ingest=chosen)  # type: ignore[arg-type]


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


def test_sources_become_a_set_whose_books_balance(
    ray_cluster: RuntimeSettings, tmp_path: Path
) -> None:
    progress: list[Progress] = []
    events: list[Event] = []
    out = ingest(
        projects(tmp_path),
        tmp_path / "set",
        settings(ray_cluster),
        on_progress=progress.append,
        on_event=events.append,
    )
    made = PreparedSet.open(out)
    assert [event.name for event in events] == ["ingest.planned"] * 2 + ["ingest.done"]
    assert events[-1].data["books"] == "230 rows in = 226 out + 4 quarantined"
    assert [event.data["contrast"] for event in events[:2]] == ["bright", "dark"]
    prepared = [step.done for step in progress if step.stage == "prepare"]
    assert prepared == sorted(prepared)
    assert prepared[0] == 2
    assert prepared[-1] == progress[0].total == 230
    assert len(prepared) > 4
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
    assert not (tmp_path / "set.partial").exists()


def test_the_set_is_the_same_however_the_work_is_divided(
    ray_cluster: RuntimeSettings, tmp_path: Path
) -> None:
    sources = projects(tmp_path)
    digests = set()
    for i, range_mib in enumerate((1, 64)):
        out = tmp_path / f"set{i}"
        ingest(sources, out, settings(ray_cluster, range_mib=range_mib))
        digests.add(PreparedSet.open(out).digest)
    most = RowRangeDatasource.MOST_TASKS
    try:
        RowRangeDatasource.MOST_TASKS = 1
        ingest(sources, tmp_path / "set2", settings(ray_cluster))
    finally:
        RowRangeDatasource.MOST_TASKS = most
    digests.add(PreparedSet.open(tmp_path / "set2").digest)
    assert len(digests) == 1


def test_too_many_bad_rows_end_the_job_with_their_list(
    ray_cluster: RuntimeSettings, tmp_path: Path
) -> None:
    write_source(tmp_path / "bad", [np.zeros((120, 32, 32), np.float32), particles(30, 32)])
    with pytest.raises(QuarantineError, match="120 of 150 rows") as raised:
        ingest([tmp_path / "bad"], tmp_path / "set", settings(ray_cluster))
    assert raised.value.file is not None
    assert len(pq.read_table(raised.value.file)) == 120
    assert not (tmp_path / "set").exists()
    source = write_source(tmp_path / "gone", [particles(3)])
    source.stacks[0].unlink()
    with pytest.raises(QuarantineError, match="3 of 3 rows"):
        ingest([tmp_path / "gone"], tmp_path / "set", settings(ray_cluster))


def test_a_source_given_twice_is_refused(ray_cluster: RuntimeSettings, tmp_path: Path) -> None:
    write_source(tmp_path / "one", [particles(3)])
    sources = [tmp_path / "one", tmp_path / "one" / "particles.star"]
    with pytest.raises(InputError, match="is given twice"):
        ingest(sources, tmp_path / "set", settings(ray_cluster))


def test_projects_are_named_apart(tmp_path: Path) -> None:
    for folder in ("a/job", "b/job", "c"):
        write_source(tmp_path / folder, [particles(3)])
    chosen = Settings(ingest={"preparation": {"contrast": "bright"}}).ingest  # type: ignore[arg-type]
    planned = plan_sources([tmp_path / name for name in ("a/job", "b/job", "c")], chosen)
    assert [part.project for part in planned] == [
        str(tmp_path / "a/job/particles.star"),
        str(tmp_path / "b/job/particles.star"),
        "c",
    ]
    together = plan_sources([tmp_path / "a"], chosen.model_copy(update={"group": "mine"}))
    assert [part.project for part in together] == ["mine"]


def test_blocks_are_what_prepare_range_returns_and_tasks_are_small(
    ray_cluster: RuntimeSettings, tmp_path: Path
) -> None:
    images = particles(40)
    images[7] = np.nan
    chosen = PreparationSettings(box=32, features=())
    planned = plan(write_source(tmp_path / "x", [images]), chosen, 64)
    datasource = RowRangeDatasource(planned.ranges, chosen)
    dataset = ray.data.read_datasource(datasource, override_num_blocks=len(datasource))
    (batch,) = dataset.iter_batches(batch_size=None, batch_format="numpy")
    rows, expected = to_rows(batch), prepare_range(planned.ranges[0], chosen)
    np.testing.assert_array_equal(rows.rows, expected.rows)
    np.testing.assert_array_equal(rows.images, expected.images)
    assert rows.features.shape == (39, 0)
    assert rows.quarantined == expected.quarantined
    (task,) = datasource.get_read_tasks(200)
    assert len(ray.cloudpickle.dumps(task)) < 20_000


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
