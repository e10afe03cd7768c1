"""What a person selected, matched to the rows of a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryoray.errors import FormatError, SelectionError
from cryoray.formats.files import write_csv
from cryoray.formats.selection import find_selection, read_reasons, read_selection
from cryoray.formats.source import Source, find_sources, open_source
from cryoray.records import REASONS
from tests.formats.files import write_particles, write_stack


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Six rows of two stacks, the second also backwards; classes 1 2 3 1 2 3."""
    for name in ("a", "b"):
        write_stack(tmp_path / f"Extract/job001/{name}.mrcs", 3)
    names = [f"{i:06d}@Extract/job001/a.mrcs" for i in (1, 2, 3)]
    names += [f"{i:06d}@Extract/job001/b.mrcs" for i in (3, 2, 1)]
    return open_source(write_particles(tmp_path / "particles.star", names))


@pytest.fixture
def classes(tmp_path: Path) -> Source:
    """Three classes of one model."""
    path = tmp_path / "run_it025_model.star"
    rows = "".join(f"{i}@run_it025_classes.mrcs\n" for i in (1, 2, 3))
    path.write_text(f"data_model_classes\nloop_\n_rlnReferenceImage\n{rows}")
    return open_source(path, "class2d")


def selection(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def subset(tmp_path: Path, *names: str) -> Path:
    return write_particles(tmp_path / "Select/job003/particles.star", names)


def test_a_subset_keeps_what_it_names_however_it_writes_it(tmp_path: Path, source: Source) -> None:
    stack = tmp_path / "Extract/job001/b.mrcs"
    (tmp_path / "Select/job003").mkdir(parents=True)
    (tmp_path / "Select/job003/link.mrcs").symlink_to(tmp_path / "Extract/job001/a.mrcs")
    path = subset(
        tmp_path, "1@./Extract/job001//a.mrcs", f"0000002@{stack}", "3@link.mrcs", "9@x.mrcs"
    )
    expected = np.array([1, 0, 1, 0, 1, 0], np.int8)
    np.testing.assert_array_equal(read_selection(path, source), expected)
    np.testing.assert_array_equal(read_selection(path.parent, source), expected)


def test_a_subset_of_another_extraction_with_the_same_file_names_does_not_match(
    tmp_path: Path, source: Source
) -> None:
    path = subset(tmp_path, "000001@Extract/job002/a.mrcs")
    with pytest.raises(SelectionError, match=r"none of its 1 rows is an image of .*particles.star"):
        read_selection(path, source)


@pytest.mark.parametrize("column", ["label", "selected"])
def test_a_csv_matches_by_file_name_or_path(tmp_path: Path, source: Source, column: str) -> None:
    path = selection(
        tmp_path,
        f"stack,index,note,{column}\na.mrcs,1,,1\njob001/a.mrcs,3,x,discard\nb.mrcs,1.0,,TRUE\n"
        "other.mrcs,77,,1\nb.mrcs,2,,\n",
    )
    np.testing.assert_array_equal(read_selection(path, source), [1, -1, 0, -1, -1, 1])


def test_a_csv_may_say_why_it_discards(tmp_path: Path, source: Source) -> None:
    text = "stack,index,label,reason\na.mrcs,1,1,\na.mrcs,3,0,Off-centre\nb.mrcs,1,0,\nb.mrcs,2,1,ice\n"
    path = selection(tmp_path, text)
    labels, reasons = read_selection(path, source), read_reasons(path, source)
    assert reasons is not None
    np.testing.assert_array_equal(labels >= 0, [True, False, True, False, True, True])
    said = [REASONS[at] if at >= 0 else None for at in reasons]
    assert [why for why in said if why] == ["off_centre"]
    assert labels[said.index("off_centre")] == 0
    assert read_reasons(selection(tmp_path, "stack,index,label\na.mrcs,1,0\n"), source) is None
    path = selection(tmp_path, "stack,index,label,reason\na.mrcs,1,0,ugly\n")
    with pytest.raises(SelectionError, match="row 1: reason is 'ugly'; give empty, ice, carbon"):
        read_reasons(path, source)


def test_a_csv_without_stacks_serves_a_source_of_one(tmp_path: Path, source: Source) -> None:
    path = selection(tmp_path, "index,label\n2,1\n3,0\n")
    stack = open_source(tmp_path / "Extract/job001/a.mrcs")
    np.testing.assert_array_equal(read_selection(path, stack), [-1, 1, 0])
    with pytest.raises(SelectionError, match=r"has no column stack, and .* has 2 stacks; add"):
        read_selection(path, source)


def test_classes_selected_in_the_gui(tmp_path: Path, classes: Source, source: Source) -> None:
    path = selection(tmp_path, "data_\nloop_\n_rlnSelected #1\n0\n5\n1\n", "backup_selection.star")
    np.testing.assert_array_equal(read_selection(path, classes), [0, 1, 1])
    np.testing.assert_array_equal(read_selection(path, source), [0, 1, 1, 0, 1, 1])
    assert find_selection(classes.path) == path
    assert find_selection(source.path) is None


def test_classes_that_were_written_anew_keep_their_number(
    tmp_path: Path, classes: Source, source: Source
) -> None:
    folder = tmp_path / "Select/job030"
    folder.mkdir(parents=True)
    text = (
        "data_\nloop_\n_rlnReferenceImage\n_rlnClassNumber\n1@Select/job030/class_averages.mrcs 3\n"
    )
    selection(folder, text, "class_averages.star")
    np.testing.assert_array_equal(read_selection(folder, classes), [0, 0, 1])
    np.testing.assert_array_equal(read_selection(folder, source), [0, 0, 1, 0, 0, 1])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty; select something"),
        ("stack,index,label\n", "is empty; select something"),
        ("index,x\n1,1\n", r"has the columns 'index', 'x'; it needs index \(1-based\)"),
        (
            "stack,index,label\na.mrcs,1,1\na.mrcs,2,maybe\n",
            "row 2: label is 'maybe'; give 1 to keep",
        ),
        ("stack,index,label\na.mrcs,0,1\n", "row 1: index is '0'; indices count from 1"),
        (
            "stack,index,label\na.mrcs,1,1\na.mrcs,4,1\n",
            "row 2: index 4 is outside its stack: a.mrcs holds 3 images",
        ),
        (
            "stack,index,label\na.mrcs,1,1\na.mrcs,1,0\n",
            "row 2: labels the same image as a row before",
        ),
        ("stack,index,label\nc.mrcs,1,1\n", "none of its 1 rows is an image of"),
        ("index,label\n1\n", "is not a CSV table"),
    ],
)
def test_a_csv_that_makes_no_sense_is_refused_in_one_sentence(
    tmp_path: Path, source: Source, text: str, sentence: str
) -> None:
    path = selection(tmp_path, text)
    with pytest.raises(SelectionError, match=f"^{path}(: |, ){sentence}"):
        read_selection(path, source)


def test_other_selections_that_make_no_sense(
    tmp_path: Path, source: Source, classes: Source
) -> None:
    with pytest.raises(SelectionError, match="there is no such selection"):
        read_selection(tmp_path / "absent.star", source)
    with pytest.raises(SelectionError, match="holds no selection of classes; give the Select job"):
        read_selection(tmp_path / "Extract", classes)
    with pytest.raises(SelectionError, match="is not a selection that can be read"):
        read_selection(selection(tmp_path, "1", "x.txt"), source)
    empty = selection(tmp_path, "data_particles\nloop_\n_rlnImageName\n", "empty.star")
    with pytest.raises(SelectionError, match="is empty"):
        read_selection(empty, source)
    nothing = selection(tmp_path, "data_x\nloop_\n_rlnOther\n1\n", "other.star")
    with pytest.raises(SelectionError, match="has neither a column rlnImageName nor rlnSelected"):
        read_selection(nothing, source)
    short = selection(tmp_path, "data_\nloop_\n_rlnSelected\n1\n0\n", "backup_selection.star")
    with pytest.raises(SelectionError, match=r"has 2 rows, and .*_model\.star has 3 classes"):
        read_selection(short, classes)
    with pytest.raises(
        SelectionError, match=r"has 2 rows, and row 3 of .*particles.star is of class 3"
    ):
        read_selection(short, source)
    stack = open_source(tmp_path / "Extract/job001/a.mrcs")
    with pytest.raises(
        SelectionError, match=r"selects classes, and the particles of .* have no rlnClass"
    ):
        read_selection(short, stack)


def test_a_stack_name_that_fits_two_is_refused(tmp_path: Path) -> None:
    for job in ("job001", "job002"):
        write_stack(tmp_path / f"{job}/a.mrcs", 1)
    source = open_source(
        write_particles(tmp_path / "particles.star", ["1@job001/a.mrcs", "1@job002/a.mrcs"])
    )
    with pytest.raises(SelectionError, match=r"'a.mrcs' could be .*job001/a.mrcs or .*; give more"):
        read_selection(selection(tmp_path, "stack,index,label\na.mrcs,1,1\n"), source)


def test_the_selection_beside_a_source_is_found(tmp_path: Path, source: Source) -> None:
    assert find_selection(source.path) is None
    other = selection(tmp_path, "data_", "other_selected.star")
    assert find_selection(source.path) == other
    labels = selection(tmp_path, "index,label\n")
    assert find_selection(source.path) == find_selection(tmp_path) == labels
    own = selection(tmp_path, "data_", "particles_selected.star")
    assert find_selection(source.path) == own


def test_a_selection_with_a_malformed_row_is_refused(tmp_path: Path) -> None:
    source = open_source(write_particles(tmp_path / "all.star", ["1@x.mrcs", "2@x.mrcs"]))
    subset = write_particles(tmp_path / "particles.star", ["1@x.mrcs", "2@x y.mrcs"])
    with pytest.raises(SelectionError, match="row 2: has 6 fields, and its table 5 columns"):
        read_selection(subset, source)


def test_a_selection_that_counts_from_0_is_refused(tmp_path: Path) -> None:
    source = open_source(
        write_particles(tmp_path / "all.star", ["1@x.mrcs", "2@x.mrcs", "3@x.mrcs"])
    )
    write_stack(tmp_path / "x.mrcs", 3)
    subset = write_particles(tmp_path / "particles.star", ["0@x.mrcs", "2@x.mrcs"])
    with pytest.raises(FormatError, match="row 1: counts the images of a stack from 0"):
        read_selection(subset, source)


def test_labels_of_a_stack_with_the_name_of_a_formula_come_back(tmp_path: Path) -> None:
    source = open_source(write_particles(tmp_path / "all.star", ["1@=x.mrcs", "2@=x.mrcs"]))
    write_csv(tmp_path / "labels.csv", ("stack", "index", "label"), [("=x.mrcs", 2, 1)])
    assert read_selection(tmp_path / "labels.csv", source).tolist() == [-1, 1]


@pytest.mark.real
def test_real_selections(real_data: Path) -> None:
    particles = open_source(real_data / "particles-empiar10017")
    labels = read_selection(real_data / "particles-empiar10017/labels.csv", particles)
    assert np.bincount(labels).tolist() == [626, 2103]
    beside = find_selection(particles.path)
    assert beside is not None
    np.testing.assert_array_equal(read_selection(beside, particles), labels)
    kept = 0
    for path in find_sources(real_data / "class-averages-human", "class2d"):
        beside = find_selection(path)
        assert beside is not None
        labels = read_selection(beside, open_source(path, "class2d"))
        assert set(labels.tolist()) == {0, 1}
        kept += int(labels.sum())
    assert kept == 105 + 67
