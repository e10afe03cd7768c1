"""Labels given to the images of a prepared set after it was made: a few clicks, or a whole selection."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cryoray.errors import SelectionError
from cryoray.formats.selection import read_selection
from cryoray.formats.source import open_source
from cryoray.preparation.prepared import PreparedSet


def labels_from(examples: PreparedSet, selection: Path) -> np.ndarray:
    """What a selection says of each image of a set, through the sources that the set was made of.

    Args:
        examples: the set.
        selection: as `formats.selection.read_selection` takes it.

    Returns:
        int8 [n]: 1 keep, 0 discard, -1 no label.

    Raises:
        SelectionError: it says nothing of any image of the set.
        InputError: a source is no longer where it was.
    """
    labels = np.full(examples.n, -1, np.int8)
    complaint: SelectionError | None = None
    first = 0
    for part in examples.parts:
        count = part["counts"]["images"]
        source = open_source(part["source"], examples.kind)
        try:
            selected = read_selection(selection, source)
        except SelectionError as error:  # it may be about another part
            complaint = error
        else:
            of = dict(zip(map(str, source.images), selected.tolist(), strict=True))
            names = examples.table["image"].slice(first, count).to_pylist()
            labels[first : first + count] = [of.get(name, -1) for name in names]
        first += count
    if not (labels >= 0).any():
        raise complaint or SelectionError(
            "labels no image of the set", file=selection, remedy="give a selection of its source"
        )
    return labels
