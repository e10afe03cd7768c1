"""The ensemble of 3D classes: of 2D classes again, but told nothing of them beside the image in its box.

3D classes are judged by slices and projections of their maps, which have no metadata and stand in no job as
2D classes do. So these networks learn from images alone, of the very classes that `recipes.class2d` makes.
"""

from __future__ import annotations

from pathlib import Path

from cryoray.formats.files import replacing
from cryoray.formats.names import CARD
from cryoray.recipes import class2d
from cryoray.settings import Settings

#: Before the card of a training on 2D classes.
_CARD = """# 3D classes: judged by an ensemble of 2D classes that learned from images alone

Maps are judged by ten pictures of each, without metadata, and held against the best of their job
(`boosting/within_job.py`); `python -m benchmarks.accuracy.class3d` and `relion_classes` measure that. All
numbers below are of 2D classes, by their images alone.

"""


def settings_of() -> Settings:
    """Those of 2D classes, without what compares a class with others of its job."""
    settings = class2d.settings_of()
    preparation = settings.ingest.preparation.model_copy(
        update={"features": (class2d.SHARE,), "geometry": "box"}
    )
    return settings.model_copy(
        update={
            "ingest": settings.ingest.model_copy(update={"preparation": preparation}),
            "train": settings.train.model_copy(update={"features": ()}),
        }
    )


def build(out: Path, work: Path, real: Path | None) -> Path:
    """As `class2d.build`, of the jobs in its folder of work: they are made once for both."""
    made = class2d.build(out, work.with_name("class2d.work"), real, settings_of(), "pictures")
    text = (made / CARD).read_text(encoding="utf-8")
    with replacing(made / CARD) as temporary:
        temporary.write_text(_CARD + text, encoding="utf-8")
    return made
