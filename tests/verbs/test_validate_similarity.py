"""What ``cryoray validate similarity`` leaves on disk, here and on Ray, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoray.errors import InputError
from cryoray.formats.source import open_source
from cryoray.settings import RuntimeSettings, Settings, ValidationSettings
from cryoray.verbs.validate_similarity import validate_similarity
from tests import without_ray

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def classes(day: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The particles of the project in two classes, seen from above and from below."""
    source = open_source(day / "particles.star")
    tilt = source.metadata["rlnAngleTilt"]
    project = tmp_path_factory.mktemp("Class2D")
    (project / "Extract").symlink_to(day / "Extract")
    lines = (day / "particles.star").read_text().splitlines()
    rows = iter(1 + (tilt > 90).astype(int))
    head = "_rlnRandomSubset"
    text = [
        f"{line} {next(rows)}" if "@Extract" in line
        else f"{line}\n_rlnClassNumber #{int(line.split('#')[1]) + 1}" if line.startswith(head)
        else line
        for line in lines
    ]  # fmt: skip
    (project / "run_data.star").write_text("\n".join(text) + "\n")
    return project / "run_data.star"


def test_class_averages_stand_between_their_references(
    day: Path, classes: Path, tmp_path: Path
) -> None:
    numbers = validate_similarity(
        classes,
        day / "verdicts",
        tmp_path / "out",
        Settings(),
        selection=day / "labels.csv",
        volume=day / "truth.mrc",
    )
    assert [one["class"] for one in numbers["by_class"]] == [1, 2]
    assert sum(one["person"] for one in numbers["by_class"]) <= numbers["used"] == 236
    # verdicts are nearly the person's labels, so much closer than two halves are to each other
    assert numbers["ours"]["mse"]["median"] < numbers["floor"]["mse"]["median"]
    assert numbers["ours"]["frc"]["median"] > 0.9
    assert 0 < numbers["projections"]["mse"]["median"] < 2
    page = (tmp_path / "out" / "report.html").read_text()
    for said in ("Worst classes", "data range 6", "at random", "data:image/png"):
        assert said in page
    assert (tmp_path / "out" / "figures" / "similarity-mse.csv").is_file()
    with pytest.raises(InputError, match="no classes"):
        validate_similarity(day, day / "verdicts", tmp_path / "no", Settings())


@pytest.mark.ray
def test_ray_finds_what_threads_find(
    day: Path, classes: Path, tmp_path: Path, ray_cluster: RuntimeSettings
) -> None:
    by = {
        name: validate_similarity(
            classes,
            day / "verdicts",
            tmp_path / name,
            Settings(runtime=ray_cluster, validation=ValidationSettings(local_max_mib=most)),
            selection=day / "labels.csv",
        )
        for name, most in (("here", 512), ("there", 0))
    }
    here, there = by["here"]["by_class"], by["there"]["by_class"]
    assert [one["class"] for one in here] == [one["class"] for one in there] == [1, 2]
    for mine, theirs in zip(here, there, strict=True):
        for column in ("likeness", "chance", "floor"):
            assert mine[column] == pytest.approx(theirs[column], abs=1e-5)


def test_a_small_job_starts_no_ray(day: Path, classes: Path, tmp_path: Path) -> None:
    words = ("--selection", day / "labels.csv", "--out", tmp_path / "out")
    without_ray.cryoray("validate", "similarity", classes, day / "verdicts", *words)
    assert (tmp_path / "out" / "metrics.json").is_file()
