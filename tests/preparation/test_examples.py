"""Which rows are trained on, and which are kept apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import InputError, SelectionError, SettingsError
from cryoray.preparation.examples import SetExamples, gather, held_out_groups
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import TrainSettings
from tests.sets import write_labelled_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sets")
    return [write_labelled_set(folder, f"p{i}", n=8, seed=i) for i in range(4)]


def test_images_features_and_labels_line_up_over_sets(sets: list[Path]) -> None:
    examples, level = gather(sets, TrainSettings())
    assert level == "project"
    assert len(examples) == 96
    asked = np.array([95, 0, 30, 3])
    expected = [
        PreparedSet.open(sets[i]).images(np.array([row]))
        for i, row in [(3, 23), (0, 0), (1, 6), (0, 3)]
    ]
    np.testing.assert_array_equal(examples.images(asked), np.concatenate(expected))
    third = PreparedSet.open(sets[2])
    np.testing.assert_array_equal(examples.labels[48:72], third.labels)
    np.testing.assert_array_equal(examples.features[48:72], third.feature_matrix(examples.names))
    assert set(examples.groups("project")) == {"p0", "p1", "p2", "p3"}


def test_what_tells_projects_apart_is_left_to_whoever_asks_for_it(sets: list[Path]) -> None:
    examples, _ = gather(sets, TrainSettings())
    assert examples.names == ("defocus",)
    chosen = ("defocus", "prepared_pixel_size")
    assert gather(sets, TrainSettings(features=chosen))[0].names == chosen


def test_a_held_out_project_is_not_there(sets: list[Path]) -> None:
    examples, _ = gather(sets, TrainSettings(hold_out="p1"))
    assert set(examples.groups("project")) == {"p0", "p2", "p3"}
    assert examples.where(examples.labels == 1).labels.all()


def test_a_fraction_holds_out_whole_groups_and_repeats_itself(sets: list[Path]) -> None:
    groups = SetExamples(sets, [np.arange(24)] * 4, ()).groups("micrograph")
    first = held_out_groups(groups, TrainSettings(hold_out="0.25"))
    assert len(first) == 3
    assert first == held_out_groups(groups, TrainSettings(hold_out="0.25"))
    assert first != held_out_groups(groups, TrainSettings(hold_out="0.25", seed=5))


def test_a_project_whose_name_is_a_number_is_a_group_and_no_fraction() -> None:
    groups = np.array(["10017", "10025", "10028"], object)
    assert held_out_groups(groups, TrainSettings(hold_out="10017")) == {"10017"}


def test_one_project_is_split_by_micrograph(sets: list[Path]) -> None:
    examples, level = gather(sets[:1], TrainSettings(hold_out="p0/mic_a.mrc"))
    assert level == "micrograph"
    assert set(examples.groups("micrograph")) == {"p0/mic_b.mrc", "p0/mic_c.mrc"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"hold_out": "nobody"}, "no group nobody to hold out; choose from p0, p1"),
        ({"hold_out": "p0,p1,p2,p3"}, "all groups are held out"),
        ({"hold_out": "1.5"}, "1.5 is not a fraction"),
        ({"hold_out": "p0,p1,p2"}, "belong to one project"),
        ({"features": ("charm",)}, "the feature charm is not in every set"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    sets: list[Path], settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        gather(sets, TrainSettings(split_by="project", **settings))


def test_a_set_without_labels_is_refused(tmp_path: Path) -> None:
    path = write_labelled_set(tmp_path, "p", n=8, labelled=False)
    with pytest.raises(
        SelectionError, match="no image has a label; ingest it again with --selection"
    ):
        gather([path], TrainSettings())


def test_labels_of_one_kind_are_refused(sets: list[Path], tmp_path: Path) -> None:
    path = write_labelled_set(tmp_path, "p", n=8, seed=2)
    table = path / "particles.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(table)
    at = rows.schema.get_field_index("label")
    pq.write_table(rows.set_column(at, "label", pa.array([True] * len(rows))), table)
    with pytest.raises(SelectionError, match="of 24 labelled images none says discard"):
        gather([path], TrainSettings())


def test_a_folder_that_is_no_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a prepared set"):
        gather([tmp_path], TrainSettings())
