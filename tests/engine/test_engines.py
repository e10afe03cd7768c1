"""The engines give the same verdicts to the last bit: threads of this process, Ray's actors, the service."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from cryoray.engine import local, pool
from cryoray.formats import companion
from cryoray.formats.opening import Scope
from cryoray.formats.source import open_source
from cryoray.models.ensemble import Ensemble
from cryoray.models.predict import finished, judge_ranges, judge_set
from cryoray.preparation.described import with_metadata
from cryoray.preparation.plan import Plan, plan
from cryoray.preparation.prepare import prepare_range
from cryoray.preparation.prepared import PreparedSet
from cryoray.records import Kind, Verdicts, ignore
from cryoray.serving.application import _answer
from cryoray.serving.judging import judge_timed
from cryoray.serving.lineup import Served
from cryoray.serving.sources import Catalogue
from cryoray.settings import RuntimeSettings
from tests.classes import write_class_job
from tests.examples import particles, write_project, write_stack
from tests.formats.files import write_cs_job
from tests.sets import write_labelled_set


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Kind]]:
    """A STAR file, a stack that it describes, a stack that nothing describes, a class job, a table."""
    folder = tmp_path_factory.mktemp("sources")
    star = write_project(folder / "star")
    stack = folder / "star/Extract/job001/mic_2.mrcs"
    bare = folder / "bare/mic_2.mrcs"
    bare.parent.mkdir()
    bare.write_bytes(stack.read_bytes())
    table = write_cs_job(folder / "cs")
    write_stack(folder / "cs/J19/extract/a.mrc", particles(6, 8))
    return {
        "star": (star, "particle"),
        "described": (stack, "particle"),
        "bare": (bare, "particle"),
        "classes": (write_class_job(folder / "classes") / "run_it025_model.star", "class2d"),
        "cs": (table, "particle"),
    }


def ensemble_of(kind: Kind, tiny: Path, classes: Path) -> Ensemble:
    return Ensemble.load(tiny if kind == "particle" else classes)


def one_by_one(planned: Plan, ensemble: Ensemble) -> Verdicts:
    """The core itself, without an engine."""
    return finished(planned.quarantined, judge_ranges(planned.ranges, ensemble), ensemble.about)


def by_service(path: Path, ensemble: Ensemble) -> Verdicts:
    """As the service does: found by the catalogue, prepared range by range, judged in odd batches."""
    assert ensemble.path is not None
    served = Served.of("tiny", ensemble, ensemble.path)
    chosen = Catalogue(1000).choose(
        path, None, ensemble.kind, served.preparation, 7, Scope((path.parents[2],))
    )
    prepared = [prepare_range(part, served.preparation) for part in chosen.ranges]
    judged = [
        one
        for start in range(0, len(prepared), 3)
        for one in judge_timed(ensemble, prepared[start : start + 3])
    ]
    return _answer(served, chosen, judged)


def same(one: Verdicts, others: Sequence[Verdicts]) -> None:
    names = [name for name in one.table.column_names if name != "image"]
    for other in others:
        assert one.table.select(names).equals(other.table.select(names))


@pytest.mark.ray
@pytest.mark.parametrize("name", ["star", "described", "bare", "classes", "cs"])
def test_the_same_bytes_come_from_every_engine(
    ray_cluster: RuntimeSettings,
    sources: dict[str, tuple[Path, Kind]],
    tiny_ensemble: Path,
    class_ensemble: Path,
    name: str,
) -> None:
    path, kind = sources[name]
    ensemble = ensemble_of(kind, tiny_ensemble, class_ensemble)
    source = open_source(path, kind)
    if name == "described":
        found = companion.find(path).companion
        assert found is not None
        source = with_metadata(source, found)
    planned = plan(source, ensemble.preparation, 1)
    here = one_by_one(planned, ensemble)
    assert len(here) == len(source)
    assert len(here.rows)
    (threads,) = local.judge_plans([planned], ensemble, 1, ignore)
    (actors,) = pool.judge_plans([planned], ensemble, True, 1, ignore)
    same(here, [threads, actors, by_service(path, ensemble)])
    if name in ("star", "described"):
        assert np.isfinite(planned.ranges[0].features).all()


@pytest.mark.ray
def test_a_prepared_set_is_judged_alike_here_and_by_ray(
    ray_cluster: RuntimeSettings, tiny_ensemble: Path, tmp_path: Path
) -> None:
    examples = PreparedSet.open(write_labelled_set(tmp_path, "p"))
    ensemble = Ensemble.load(tiny_ensemble)
    rows = np.arange(0, examples.n, 2)
    here = Verdicts.together(judge_set(examples, rows, ensemble, everyone=True))
    threads = local.judge_set(examples, rows, ensemble, ignore, everyone=True)
    actors = pool.judge_set(examples, rows, ensemble, ignore, everyone=True)
    same(here, [threads, actors])
    assert here.rows.tolist() == rows.tolist()


def test_several_plans_are_judged_together_and_told_apart(
    sources: dict[str, tuple[Path, Kind]], tiny_ensemble: Path
) -> None:
    ensemble = Ensemble.load(tiny_ensemble)
    plans = [
        plan(open_source(sources[name][0]), ensemble.preparation, 1) for name in ("star", "bare")
    ]
    both = local.judge_plans(plans, ensemble, 1, ignore)
    for planned, together in zip(plans, both, strict=True):
        same(one_by_one(planned, ensemble), [together])
