"""What a person kept and discarded, as other programs and people write it, matched to a source's rows.

Read are RELION's Select job folder, a ``particles.star`` that is a subset, ``class_averages.star``,
``backup_selection.star`` (one row per class: 0 discards; other numbers are the GUI's colours or 1),
the grades and scores of a class ranker's training data (`class_scores`),
cryoSPARC's Select 2D job folder or one of its tables (``particles_selected.cs``, …), and a CSV with
``index`` (1-based), ``label`` or ``selected``, and ``stack`` where there are several. A selection of
classes labels particles by their class number. A CSV may also say why it discards, under ``reason``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
from pyarrow import csv

from cryoray.errors import FormatError, SelectionError
from cryoray.formats import mrc, rln
from cryoray.formats.class_scores import (
    FEATURES,
    SCORE,
    SUBIMAGES,
    features_table,
    is_graded,
    of_grades,
    of_scores,
)
from cryoray.formats.cryosparc import Joined, open_cs, open_joined, selected_and_excluded
from cryoray.formats.files import without_apostrophe
from cryoray.formats.opening import way_out
from cryoray.formats.relion import IMAGE_COLUMNS, refuse_zero_based, split_names
from cryoray.formats.rows import CS_SUFFIXES, Source, exists
from cryoray.formats.star import Block, Columns, as_objects, parse
from cryoray.records import REASONS, Kind

_WORDS = {
    **dict.fromkeys(("1", "1.0", "true", "yes", "keep", "kept", "selected"), 1),
    **dict.fromkeys(("0", "0.0", "false", "no", "discard", "discarded", "excluded"), 0),
    **dict.fromkeys(("", "-1", "nan", "none", "null"), -1),
}
_FRAME_BITS = 40


def find_selection(path: Path) -> Path | None:
    """The selection that lies beside a source, if one does.

    That is ``NAME_selected.star`` of ``NAME.star``, for what a Select 2D job selected or excluded that job's
    own table of the selected, ``labels.csv``, another ``*_selected.star`` if it
    is the only one, or, beside a model of classes, ``backup_selection.star``. A class ranker's table of
    features is its own.
    """
    folder = path if path.is_dir() else path.parent
    own = folder / f"{path.stem}_selected.star"
    if path.is_file() and own.is_file():
        return own
    if path.is_file() and FEATURES.match(path.name):
        return path if _is_scored(path) else None
    if path.suffix in CS_SUFFIXES and (both := selected_and_excluded(path)):
        return both.get(True, path)
    if (folder / "labels.csv").is_file():
        return folder / "labels.csv"
    selected = sorted(folder.glob("*_selected.star"))
    if len(selected) == 1:
        return selected[0]
    backup = folder / "backup_selection.star"
    return backup if path.name.endswith("_model.star") and backup.is_file() else None


def read_selection(path: Path, source: Source) -> np.ndarray:
    """What a selection says of each row of a source.

    Returns:
        int8 [n]: 1 keep, 0 discard, -1 no label.

    Raises:
        SelectionError: it is missing or empty, matches no row, or names an image outside its stack.
        FormatError: it cannot be read.
    """
    path = Path(path).absolute()
    if path.is_dir():
        path = _in_folder(path, source)
    if not path.is_file():
        raise SelectionError("there is no such selection", file=path, remedy=way_out(path))
    if path.suffix == ".csv":
        return _from_csv(path, source)
    if path.suffix == ".star":
        return _from_star(path, source)
    if path.suffix in CS_SUFFIXES:
        return _from_cs(path, source)
    raise SelectionError(
        "is not a selection that can be read",
        file=path,
        remedy="give a Select job's folder, a .star subset, backup_selection.star, a .cs table or a .csv",
    )


def read_reasons(path: Path, source: Source) -> np.ndarray | None:
    """Why a selection discards each row of a source, where it says so.

    Returns:
        int8 [n], a place in `records.REASONS`, -1 where none is given or the row is not discarded;
        None for a selection that has no reasons at all.

    Raises:
        SelectionError: a reason is none of `records.REASONS`, or as `read_selection`.
    """
    path = Path(path).absolute()
    if path.is_dir():
        path = _in_folder(path, source)
    if path.suffix != ".csv":
        return None
    table = _read_csv(path)
    if "reason" not in table.column_names:
        return None
    stack, frame, labels = _rows_of_csv(path, table, source)
    words = [word.strip().lower().replace("-", "_") for word in table["reason"].to_pylist()]
    known: dict[str, int] = {"": -1, **{reason: at for at, reason in enumerate(REASONS)}}
    reasons = np.array(
        [
            known.get(word, -2) if label == 0 else -1
            for word, label in zip(words, labels, strict=True)
        ],
        np.int8,
    )
    _refuse(reasons == -2, words, path, "reason is %r", f"give {', '.join(REASONS)}, or nothing")
    return _join(path, source, stack, frame, reasons)


def _is_scored(path: Path) -> bool:
    table = features_table(parse(path))
    return table is not None and SCORE in table.columns


def _in_folder(folder: Path, source: Source) -> Path:
    classes: tuple[str, ...] = ("backup_selection.star", "class_averages.star")
    classes += tuple(f"templates_{word}.cs" for word in ("selected", "excluded"))
    particles = ("particles.star", "particles_selected.cs", "particles_excluded.cs")
    names = (*particles, *classes) if source.kind == "particle" else classes
    for name in names:
        if (folder / name).is_file() and ((folder / name) != source.path or name.endswith(".cs")):
            return folder / name
    found = find_selection(folder)
    if found is None:
        raise SelectionError(
            f"holds no selection of {'particles' if source.kind == 'particle' else 'classes'}",
            file=folder,
            remedy=f"give the Select job folder that has one of {', '.join(names)}",
        )
    return found


def _from_star(path: Path, source: Source) -> np.ndarray:
    star = parse(path)
    scored = features_table(star)
    if scored is not None:
        return _from_scores(path, scored, source)
    selected = star.with_column(rln.SELECTED)
    if selected is not None:
        _check_some(path, len(selected))
        read = selected.read(numbers=[rln.SELECTED])
        _refuse_malformed(path, read)
        values = read.numbers[rln.SELECTED]
        if is_graded(path):
            return _by_class(path, of_grades(values), source)
        return _by_class(path, np.where(np.isnan(values), -1, values != 0).astype(np.int8), source)
    subset = star.with_column(IMAGE_COLUMNS[source.kind])
    if subset is not None:
        return _from_subset(path, subset, source)
    classes = star.with_column(IMAGE_COLUMNS["class2d"])
    if classes is not None and rln.CLASS_NUMBER in classes.columns:
        return _from_class_numbers(path, classes, source)
    raise SelectionError(
        f"has neither a column {IMAGE_COLUMNS[source.kind]} nor rlnSelected",
        file=path,
        remedy="give RELION's particles.star, class_averages.star or backup_selection.star",
    )


def _from_cs(path: Path, source: Source) -> np.ndarray:
    """What a Select 2D job selected is kept, what it excluded is discarded.

    Without the excluded, whatever was not selected is discarded; without the selected, nothing else has
    a label. Classes label particles by the class that these are in.
    """
    tables = selected_and_excluded(path) or {True: path}
    labels = np.full(len(source), -1 if False in tables else 0, np.int8)
    rows, found = 0, False
    for kept, file in tables.items():
        joined = open_joined(file)
        rows += len(joined.main)
        for kind in (source.kind, "class2d"):  # classes may label particles
            here = _rows_of(joined, file, source, kind) if len(joined.main) else None
            if here is not None and here.any():
                labels[here], found = kept, True
                break
    _check_some(path, rows)
    if not found:
        raise _nothing_matches(path, rows, source)
    labels[source.stack < 0] = -1
    return labels


def _rows_of(joined: Joined, file: Path, source: Source, kind: Kind) -> np.ndarray | None:
    """Which rows of a source a table is about: bool [n], None where it is not of this kind."""
    if source.uid is not None and kind == source.kind:
        here = np.isin(source.uid, joined.uid)
        if here.any():
            return here
    try:
        listed = open_cs(file, kind)
    except FormatError:
        return None
    if kind == "class2d":
        if rln.CLASS_NUMBER not in source.metadata:
            return None
        return np.isin(source.metadata[rln.CLASS_NUMBER], listed.frame[listed.stack >= 0] + 1)
    stack = _match([str(path) for path in listed.stacks], source, file.parent)[listed.stack]
    wanted = _keys(stack, listed.frame)
    return np.isin(_keys(source.stack, source.frame), wanted[wanted >= 0])


def _from_subset(path: Path, subset: Block, source: Source) -> np.ndarray:
    """Rows that the subset names are kept, all others are discarded."""
    _check_some(path, len(subset))
    column = IMAGE_COLUMNS[source.kind]
    read = subset.read([column])
    _refuse_malformed(path, read)
    frame, names, stack = split_names(read.strings[column])
    refuse_zero_based(path, as_objects(read.strings[column]), frame, np.flatnonzero(stack < 0))
    kept = _keys(_match(names, source, path.parent)[stack], frame)
    labels = np.isin(_keys(source.stack, source.frame), kept[kept >= 0]).astype(np.int8)
    labels[source.stack < 0] = -1
    if not labels.any() or (labels < 1).all():
        if source.kind == "class2d" and rln.CLASS_NUMBER in subset.columns:
            return _from_class_numbers(path, subset, source)
        raise _nothing_matches(path, len(subset), source)
    return labels


def _from_scores(path: Path, table: Block, source: Source) -> np.ndarray:
    """Classes by their scores, in rows that name the class average or the image cut from it."""
    _check_some(path, len(table))
    if SCORE not in table.columns:
        raise SelectionError(
            f"has no column {SCORE}", file=path, remedy="give a table of graded classes"
        )
    scores = table.numbers(SCORE)
    for column in (IMAGE_COLUMNS["class2d"], SUBIMAGES):
        if column not in table.columns:
            continue
        frame, names, stack = split_names(table.read([column]).strings[column])
        matched = _match(names, source, path.parent)[stack]
        if (matched >= 0).any():
            labels = of_scores(scores, [names[at] if at >= 0 else "" for at in stack.tolist()])
            return _join(path, source, matched, frame, labels)
    raise _nothing_matches(path, len(table), source)


def _from_class_numbers(path: Path, classes: Block, source: Source) -> np.ndarray:
    """Classes that were written anew, into a stack of their own, and kept their number in the model."""
    _check_some(path, len(classes))
    numbers = classes.numbers(rln.CLASS_NUMBER)
    numbers = numbers[numbers >= 1].astype(np.int64)
    if source.kind == "class2d":
        known = len(source)
    else:
        known = int(np.nanmax(_class_numbers(path, source), initial=0))
    selected = np.zeros(max(known, numbers.max(initial=0)), np.int8)
    selected[numbers - 1] = 1
    return _by_class(path, selected[:known], source)


def _by_class(path: Path, selected: np.ndarray, source: Source) -> np.ndarray:
    """One value per class to one per row: classes in order, particles by their class number."""
    if source.kind == "class2d":
        if len(selected) != len(source):
            raise SelectionError(
                f"has {len(selected)} rows, and {source.path} has {len(source)} classes",
                file=path,
                remedy="give the selection that was made from these classes",
            )
        return selected
    numbers = _class_numbers(path, source)
    if np.nanmax(numbers, initial=0) > len(selected):
        row = int(np.nanargmax(numbers))
        raise SelectionError(
            f"has {len(selected)} rows, and row {row + 1} of {source.path} is of class"
            f" {int(numbers[row])}",
            file=path,
            remedy="give the selection that was made from these particles' classes",
        )
    labelled = numbers >= 1
    labels = np.full(len(source), -1, np.int8)
    labels[labelled] = selected[numbers[labelled].astype(np.int64) - 1]
    if not labelled.any():
        raise _nothing_matches(path, len(selected), source)
    return labels


def _class_numbers(path: Path, source: Source) -> np.ndarray:
    if rln.CLASS_NUMBER not in source.metadata:
        raise SelectionError(
            f"selects classes, and the particles of {source.path} have no rlnClassNumber",
            file=path,
            remedy="give the *_data.star of the classification as the source",
        )
    return source.metadata[rln.CLASS_NUMBER]


def _from_csv(path: Path, source: Source) -> np.ndarray:
    return _join(path, source, *_rows_of_csv(path, _read_csv(path), source))


def _read_csv(path: Path) -> pa.Table:
    """A CSV with its columns of text as text."""
    try:
        options = csv.ConvertOptions(strings_can_be_null=False)
        texts = ("index", "label", "selected", "stack", "reason")
        options.column_types = dict.fromkeys(texts, pa.string())
        # pyarrow takes no path that is not UTF-8, and its threads go on after an error, when what Python
        # gave them to read may be gone.
        text = pa.BufferReader(path.read_bytes())
        table = csv.read_csv(text, csv.ReadOptions(use_threads=False), convert_options=options)
        _ = table.column_names  # pyarrow takes them for UTF-8 only now
        return table
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        if not path.stat().st_size:
            raise _empty(path) from None
        encoding = isinstance(error, UnicodeDecodeError)
        raise SelectionError(
            f"is not a CSV table: {'not UTF-8 text' if encoding else str(error).splitlines()[0]}",
            file=path,
            remedy="the first line names the columns index, label or selected, and stack",
        ) from error


def _rows_of_csv(
    path: Path, table: pa.Table, source: Source
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The source's stack, the 0-based place in it, and the label (int8) that each row of a CSV means."""
    columns = table.column_names
    label = next((name for name in ("label", "selected") if name in columns), None)
    if label is None or "index" not in columns:
        raise SelectionError(
            f"has the columns {', '.join(map(repr, columns))}",
            file=path,
            remedy="it needs index (1-based) and label or selected",
        )
    for name in (label, "index", "stack", "reason"):
        if columns.count(name) > 1:
            raise SelectionError(
                f"has {columns.count(name)} columns {name}", file=path, remedy="leave one of them"
            )
    _check_some(path, len(table))
    words = table[label].to_pylist()
    labels = np.array([_WORDS.get(word.strip().lower(), -2) for word in words], np.int8)
    _refuse(labels == -2, words, path, f"{label} is %r", "give 1 to keep, 0 to discard")
    texts = [text.strip().removesuffix(".0") for text in table["index"].to_pylist()]
    index = np.array(
        [int(text) if text.isdecimal() and len(text) < 16 else 0 for text in texts], np.int64
    )
    _refuse(index < 1, texts, path, "index is %r", "indices count from 1")
    if "stack" in columns:
        encoded = table["stack"].combine_chunks().dictionary_encode()
        names = [without_apostrophe(name) for name in encoded.dictionary.to_pylist()]
        stack = _match(names, source, path.parent)[encoded.indices.to_numpy()]
    elif len(source.stacks) == 1:
        stack = np.zeros(len(table), np.int32)
    else:
        raise SelectionError(
            f"has no column stack, and {source.path} has {len(source.stacks)} stacks",
            file=path,
            remedy="add the column stack with the file name of each row's stack",
        )
    return stack, index - 1, labels


def _join(
    path: Path, source: Source, stack: np.ndarray, frame: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Labels (or reasons) of images to those of rows; an image may be named by several rows."""
    listed = _keys(stack, frame)
    order = np.argsort(listed, kind="stable")
    ordered = listed[order]
    twice = np.flatnonzero(
        (np.diff(ordered) == 0) & (np.diff(labels[order]) != 0) & (ordered[1:] >= 0)
    )
    if twice.size:
        row = int(order[twice[0] + 1])
        raise SelectionError(
            "labels the same image as a row before it, and differently", file=path, row=row + 1
        )
    wanted = _keys(source.stack, source.frame)
    at = np.searchsorted(ordered, wanted).clip(max=len(ordered) - 1)
    found = (ordered[at] == wanted) & (wanted >= 0)
    _check_inside(path, source, stack, frame, np.isin(listed, wanted[found]))
    if not found.any():
        raise _nothing_matches(path, len(labels), source)
    return np.where(found, labels[order][at], -1).astype(np.int8)


def _check_inside(
    path: Path, source: Source, stack: np.ndarray, frame: np.ndarray, matched: np.ndarray
) -> None:
    """Refuse a label of an image that its stack does not have; one that no row names is fine."""
    open_rows = np.flatnonzero(~matched & (stack >= 0))
    for number in np.unique(stack[open_rows]):
        rows = open_rows[stack[open_rows] == number]
        row = int(rows[np.argmax(frame[rows])])
        file = source.stacks[number]
        try:
            held = mrc.promised(mrc.read_header(file))
        except FormatError:
            continue  # the plan quarantines its rows, and says why
        if frame[row] >= held:
            raise SelectionError(
                f"index {frame[row] + 1:,} is outside its stack: {file.name} holds {held:,} images",
                file=path,
                row=row + 1,
                remedy="give the labels of this stack",
            )


def _match(names: Sequence[str], source: Source, folder: Path) -> np.ndarray:
    """The source's stack that each name means: int32 [len(names) + 1], -1 where it is none, or last.

    A name means the stack whose path ends with it. Less would do harm: a micrograph extracted twice
    has the same file name in two jobs, and other images in it. A name that fits none may still be the
    same file by another way, through a link.
    """
    by_file: dict[str, list[int]] = defaultdict(list)
    for number, stack in enumerate(source.stacks):
        by_file[stack.name].append(number)
    matched = np.full(len(names) + 1, -1, np.int32)
    real: dict[Path, int] | None = None
    for at, name in enumerate(names):
        parts = tuple(part for part in PurePosixPath(name).parts if part != "..")
        fitting = [
            number
            for number in by_file.get(parts[-1] if parts else "", ())
            if source.stacks[number].parts[-len(parts) :] == parts
        ]
        if len(fitting) > 1:
            raise SelectionError(
                f"stack {name!r} could be {source.stacks[fitting[0]]} or {source.stacks[fitting[1]]}",
                file=folder,
                remedy="give more of its path",
            )
        if fitting:
            matched[at] = fitting[0]
        elif exists(folder / name):
            if real is None:
                real = {stack.resolve(): number for number, stack in enumerate(source.stacks)}
            matched[at] = real.get((folder / name).resolve(), -1)
    return matched


def _keys(stack: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """One int64 for each image of a source, -1 for what is none."""
    keys = (stack.astype(np.int64) << _FRAME_BITS) | np.minimum(frame, (1 << _FRAME_BITS) - 1)
    return np.where((stack < 0) | (frame < 0), -1, keys)


def _refuse(bad: np.ndarray, words: Sequence[str], path: Path, what: str, remedy: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise SelectionError(what % words[row], file=path, row=row + 1, remedy=remedy)


def _refuse_malformed(path: Path, read: Columns) -> None:
    if read.malformed:
        row, why = min(read.malformed.items())
        raise SelectionError(why, file=path, row=row + 1, remedy="correct the row, or select again")


def _check_some(path: Path, rows: int) -> None:
    if not rows:
        raise _empty(path)


def _empty(path: Path) -> SelectionError:
    return SelectionError(
        "is empty", file=path, remedy="select something, or give another selection"
    )


def _nothing_matches(path: Path, rows: int, source: Source) -> SelectionError:
    return SelectionError(
        f"none of its {rows:,} rows is an image of {source.path}",
        file=path,
        remedy="give the selection that was made from this source",
    )
