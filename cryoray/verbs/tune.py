"""Look for networks and training settings: what was tried, and what each axis buys."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from cryoray.boosting.filtering import folds_of_groups
from cryoray.engine import runtime, tuning
from cryoray.errors import SettingsError
from cryoray.formats.files import replacing, replacing_folder
from cryoray.formats.names import REPORT
from cryoray.models.search import BLOCKS
from cryoray.preparation.examples import gather
from cryoray.records import Event, OnEvent, OnProgress, ignore
from cryoray.report.tuning import TABLE, write_page
from cryoray.settings import Settings


def tune(
    sets: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Try networks and settings on prepared sets, and say what each axis buys.

    Args:
        sets: folders of prepared sets.
        out: folder of `trials.csv` and `report.html`; an older search there is replaced.
        settings: ``tune`` says what is tried, ``train`` the rest.
        on_progress: called when a trial ends.
        on_event: ``tune.done`` with the best.

    Returns:
        the best trial: its axes, ``loss`` and ``accuracy`` on the groups held out.

    Raises:
        InputError: sets or labels that cannot be trained on, or ``out`` holds something else.
    """
    chosen, train = settings.tune, settings.train
    for depth in chosen.depth:
        if depth not in BLOCKS:
            raise SettingsError(
                f"tune.depth: there is no network of {depth} blocks",
                remedy=f"choose from {', '.join(map(str, BLOCKS))}",
            )
    examples, level = gather([Path(path).absolute() for path in sets], train)
    fold_of = folds_of_groups(examples.groups(level), train.folds, train.seed)
    of = {"prepared set": [str(s.path.absolute()) for s in examples.sets]}
    with replacing_folder(
        Path(out).absolute(), "search", _is_search, of, replace=chosen.replace
    ) as partial:
        runtime.connect(settings.runtime)
        search = tuning.Search(
            sets=tuple(s.path for s in examples.sets),
            rows=tuple(examples.rows),
            features=examples.names,
            fit=train.fit,
            inside=np.flatnonzero(fold_of != 0),
            outside=np.flatnonzero(fold_of == 0),
            seed=train.seed,
            gpu=train.gpu,
        )
        trials = tuning.run(search, chosen, settings, on_progress)
        table = pa.Table.from_pylist(trials)
        with replacing(partial / TABLE) as temporary:
            csv.write_csv(table, temporary)
        write_page(partial / REPORT, trials, chosen, settings, examples, len(search.outside), level)
    best = trials[0]
    on_event(Event("tune.done", best))
    return best


def _is_search(folder: Path) -> bool:
    return (folder / TABLE).is_file()
