"""What ``cryoray validate fsc`` leaves on disk, what it refuses, and what it does without."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cryoray.cli.main import app
from cryoray.errors import InputError
from cryoray.formats.volume import write_volume
from cryoray.settings import Settings
from cryoray.verbs.validate_fsc import validate_fsc
from tests import without_ray
from tests.half_maps import PIXEL, half_maps, phantom

pytestmark = pytest.mark.long

XML = "<fsc>" + "".join(
    f"<coordinate><x>{k / 160}</x><y>{max(0, 1 - k / 10)}</y></coordinate>" for k in range(16)
)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("halves")
    made = half_maps(phantom(40), noise=0.8)
    first, second = (
        write_volume(folder / f"half{n}.mrc", half.numpy(), PIXEL) for n, half in enumerate(made, 1)
    )
    return first, second


def test_the_folder_holds_numbers_page_mask_and_figures(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    curve, out = tmp_path / "emd_fsc.xml", tmp_path / "out"
    curve.write_text(XML + "</fsc>")
    done = CliRunner().invoke(
        app,
        [
            "validate",
            "fsc",
            *map(str, halves),
            "--mask",
            "auto",
            "--published",
            str(curve),
            "--out",
            str(out),
        ],
    )
    assert done.exit_code == 0, done.output
    numbers = json.loads((out / "metrics.json").read_text())
    assert set(numbers["fsc"]) == {
        "frequency", "unmasked", "masked", "phase_randomised", "corrected",
    }  # fmt: skip
    assert {len(curve) for curve in numbers["fsc"].values()} == {21}
    assert set(numbers["resolution"]) == {"0.143", "0.5"}
    # the published line 1 - k/10 crosses 0.5 at k = 5 of 160 Å
    assert numbers["published"]["resolution"]["0.5"]["interpolated"] == pytest.approx(160 / 5)
    ours = numbers["resolution"]["0.5"]["interpolated"]
    assert numbers["published"]["difference"]["0.5"] == pytest.approx(ours - 32)
    assert (out / "mask.mrc").is_file()
    page = (out / "report.html").read_text()
    assert "published (emd_fsc.xml)" in page
    assert "Distrust" in page or not numbers["warnings"]
    for name in ("fsc", "directions"):
        assert ET.parse(out / "figures" / f"{name}.svg").getroot().tag.endswith("svg")
        assert "var(--" not in (out / "figures" / f"{name}.svg").read_text()
        assert np.asarray(Image.open(out / "figures" / f"{name}.png")).std() > 5
    with (out / "figures" / "fsc.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["corrected"]) for row in rows] == pytest.approx(numbers["fsc"]["corrected"])


def test_maps_that_do_not_belong_together_are_refused(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    other = write_volume(tmp_path / "other.mrc", phantom(32).numpy(), PIXEL)
    coarse = write_volume(tmp_path / "coarse.mrc", phantom(40, seed=8).numpy(), 2 * PIXEL)
    for second, said in ((other, "32³"), (coarse, "Å/px"), (halves[0], "same map")):
        with pytest.raises(InputError, match=said):
            validate_fsc(halves[0], second, tmp_path / "out", Settings())
    with pytest.raises(InputError, match="is not a mask"):
        validate_fsc(*halves, tmp_path / "out", Settings(), mask=str(halves[0]))
    assert not (tmp_path / "out").exists()


def test_it_is_done_without_ray(halves: tuple[Path, Path], tmp_path: Path) -> None:
    """Importing Ray would take longer than the curves do."""
    without_ray.cryoray("validate", "fsc", *halves, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "metrics.json").is_file()
