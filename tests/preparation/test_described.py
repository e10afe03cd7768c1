"""A stack is judged, learned from and looked at with its STAR file's metadata and its data set's contrast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.formats.opening import Scope
from cryoray.formats.source import open_source
from cryoray.preparation.described import describe
from cryoray.records import Event
from cryoray.serving.sources import Catalogue
from cryoray.settings import PreparationSettings, Settings, load
from cryoray.verbs.classify import classify
from cryoray.verbs.ingest import plan_sources
from tests.examples import particles, write_stack, write_star

ROW = "mic.mrc 1 9000 9000 4"


@pytest.fixture
def dark(tmp_path: Path) -> Path:
    """Eight stacks in which protein is dark, the first of one image, in one STAR file."""
    rows = []
    for number, size in enumerate((1, *[20] * 7)):
        write_stack(tmp_path / f"mic_{number}.mrcs", -particles(size, seed=number))
        rows += [f"{frame + 1}@mic_{number}.mrcs {ROW}" for frame in range(size)]
    return write_star(tmp_path / "particles.star", rows)


def test_a_small_stack_has_the_contrast_of_its_data_set_whoever_plans(
    dark: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    """Before, `classify` asked the stack alone, and the service the STAR file."""
    stack = dark.with_name("mic_0.mrcs")
    events: list[Event] = []
    settings = load(classify={"ensemble": str(tiny_ensemble)})
    classify(stack, tmp_path / "out", settings, on_event=events.append)
    planned = next(one for one in events if one.name == "classify.planned")
    assert planned.data["contrast"] == "dark"
    preparation = PreparationSettings(box=32)
    of_service = Catalogue(100).choose(stack, None, "particle", preparation, 16, Scope((tmp_path,)))
    assert [part.invert for part in of_service.ranges] == [True]
    assert describe(open_source(stack)).is_dark(preparation)
    assert not describe(
        open_source(write_stack(tmp_path / "a" / "b" / "c" / "d" / "e.mrcs", particles(1)))
    ).is_dark(preparation)


def test_a_stack_is_learned_from_with_the_metadata_that_it_is_judged_with(dark: Path) -> None:
    """Before, `ingest` looked for no STAR file, so networks learned without what they judged with."""
    events: list[Event] = []
    (part,) = plan_sources(
        [dark.with_name("mic_3.mrcs")], Settings().ingest, on_event=events.append
    )
    assert part.plan.source.metadata["rlnDefocusU"].tolist() == [9000.0] * 20
    assert part.plan.invert
    assert events[0].data["described by"] == str(dark)


def test_a_stack_is_opened_as_the_file_that_describes_all_of_it(tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "mic.mrcs", particles(3))
    bare = open_source(stack)
    star = write_star(tmp_path / "mic.star", [f"1@mic.mrcs {ROW}", f"2@mic.mrcs {ROW}"])
    assert describe(bare).source.path == stack, "one image is left out"
    write_star(star, [f"{frame}@mic.mrcs {ROW}" for frame in (3, 1, 2)])
    assert describe(bare).source.path == star
    by_frame = describe(bare, by_frame=True).source
    assert by_frame.path == stack
    assert np.array_equal(by_frame.frame, [0, 1, 2])
    assert by_frame.metadata["rlnDefocusU"].tolist() == [9000.0] * 3
