"""``python -m docs.pictures`` makes the picture of the first page: a simulated collection, judged.

The collection is simulated with a fixed seed and judged by the ensemble that ships; the picture is what
``verdicts.plot()`` draws of it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

import cryoray

_OUT = Path(__file__).parent / "pictures/verdicts.png"


def main() -> None:
    """Simulate, judge, draw."""
    with tempfile.TemporaryDirectory() as folder:
        simulate = {"projects": 1, "images": 1000, "snr": 0.3, "seed": 7}
        settings = cryoray.load_settings(simulate=simulate)
        (project,) = cryoray.simulate(Path(folder) / "data", settings)
        verdicts = cryoray.load_ensemble("particle").classify(project / "particles.star")
        figure = verdicts.plot(images=12)
        figure.savefig(_OUT, dpi=80)
    with Image.open(_OUT) as picture:
        grey = picture.convert("L").quantize(32)
    grey.save(_OUT, optimize=True)


if __name__ == "__main__":
    main()
