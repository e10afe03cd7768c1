"""What ``cryoray validate`` leaves on disk, and what it refuses."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image
from typer.testing import CliRunner

from cryoray.cli.main import app
from cryoray.engine import runtime
from cryoray.engine.reduce import accumulate, particles_of, read_images, summed
from cryoray.errors import InputError
from cryoray.formats.mrc import read_frames, read_header
from cryoray.formats.source import open_source
from cryoray.formats.verdicts import write_verdicts
from cryoray.formats.volume import read_volume, write_volume
from cryoray.maps import similarity
from cryoray.settings import ProofSettings, RuntimeSettings, Settings, SimulateSettings
from cryoray.simulation import read_truth, simulate
from cryoray.verbs.validate import (
    validate_fsc,
    validate_reconstruct,
    validate_similarity,
)
from tests.examples import verdicts_of
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
    with pytest.raises(InputError, match="no mask"):
        validate_fsc(*halves, tmp_path / "out", Settings(), mask=str(halves[0]))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated project, and verdicts that are its truth but for a few mistakes and two reviews."""
    out = tmp_path_factory.mktemp("day")
    chosen = SimulateSettings(projects=1, images=240, box=32, snr=0.5, junk=0.4, seed=2)
    folder = simulate(out, Settings(simulate=chosen))[0]
    source = open_source(folder / "particles.star")
    keep = np.array([line["keep"] == "1" for line in read_truth(folder)])
    verdict = np.where(keep, "keep", "discard").astype(object)
    verdict[:2] = "review"
    fates = [*verdict[:236].tolist(), "quarantined"]
    write_verdicts(folder / "verdicts", source, verdicts_of(fates))
    return folder


@pytest.mark.ray
def test_maps_of_the_choices_and_what_they_prove(
    day: Path, tmp_path: Path, ray_cluster: RuntimeSettings
) -> None:
    out = tmp_path / "proof"
    settings = Settings(runtime=ray_cluster, proof=ProofSettings(random_subsets=2))
    numbers = validate_reconstruct(day, day / "verdicts", out, settings, mask=None)
    assert (numbers["used"], numbers["left_out"]) == (236, 4)
    sets = numbers["sets"]
    assert list(sets) == ["kept", "discarded", "review", "all", "random 1", "random 2"]
    parts = sum(sets[name]["particles"] for name in ("kept", "discarded", "review"))
    assert parts == sets["all"]["particles"] == 236
    assert sets["random 1"]["particles"] == sets["kept"]["particles"]
    # junk has no map: what was kept agrees far better, and so with the truth
    mean = {name: np.mean(found["fsc"]["unmasked"][1:8]) for name, found in sets.items()}
    assert mean["kept"] > mean["all"] > mean["discarded"]
    assert (
        np.mean(sets["kept"]["fsc_true"][1:8]) > np.mean(sets["discarded"]["fsc_true"][1:8]) + 0.2
    )
    assert numbers["reslog"]["kept"]["particles"][-1] == sets["kept"]["particles"]
    assert np.all(np.diff(numbers["reslog"]["all"]["particles"]) > 0)
    half, _ = read_volume(out / "kept_half1.mrc")
    assert half.shape == (32, 32, 32)
    page = (out / "report.html").read_text()
    for said in ("resembling a reference", "Against the truth", "Went in", "236", "random"):
        assert said in page


@pytest.mark.ray
def test_a_tree_of_tasks_adds_up_what_one_task_does(
    day: Path, ray_cluster: RuntimeSettings
) -> None:
    particles = particles_of(open_source(day / "particles.star"))[np.arange(40)]
    runtime.connect(ray_cluster)
    together = accumulate(particles, per_task=7)
    assert together is not None
    alone = summed(particles)
    assert ray.get(together) == pytest.approx(alone, abs=1e-4 * float(np.abs(alone).max()))
    assert accumulate(particles[np.arange(0)]) is None


def test_half_sets_are_never_drawn_anew(day: Path, tmp_path: Path) -> None:
    text = (day / "particles.star").read_text().replace("_rlnRandomSubset", "_rlnSomethingElse")
    project = tmp_path / "project"
    project.mkdir()
    (project / "Extract").symlink_to(day / "Extract")
    (project / "particles.star").write_text(text)
    with pytest.raises(InputError, match=r"no half-sets \(rlnRandomSubset\).*refinement"):
        validate_reconstruct(project, day / "verdicts", tmp_path / "out", Settings())
    (project / "particles.star").write_text(text.replace("_rlnAngleRot", "_rlnWhatever"))
    with pytest.raises(InputError, match="no poses"):
        validate_reconstruct(project, day / "verdicts", tmp_path / "out", Settings())
    with pytest.raises(InputError, match="no verdicts"):
        validate_reconstruct(day, tmp_path / "nowhere", tmp_path / "out", Settings())


@pytest.mark.ray
def test_class_averages_stand_between_their_references(
    day: Path, tmp_path: Path, ray_cluster: RuntimeSettings
) -> None:
    source = open_source(day / "particles.star")
    tilt = source.metadata["rlnAngleTilt"]
    project = tmp_path / "Class2D"
    project.mkdir()
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
    numbers = validate_similarity(
        project / "run_data.star",
        day / "verdicts",
        tmp_path / "out",
        Settings(runtime=ray_cluster),
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
        validate_similarity(day, day / "verdicts", tmp_path / "no", Settings(runtime=ray_cluster))


@pytest.mark.real
def test_averages_of_a_real_job_are_relions_own(real_data: Path) -> None:
    job = real_data / "relion5-project" / "Class2D" / "job010"
    source = open_source(job / "run_it025_data.star")
    particles = particles_of(source, in_plane=True)
    classes = source.metadata["rlnClassNumber"][particles.row].astype(int)
    stack = read_header(job / "run_it025_classes.mrcs")
    mask = similarity.round_mask(particles.box, 22)
    for number in np.argsort(-np.bincount(classes))[:4]:
        rows = np.flatnonzero(classes == number)
        images = torch.from_numpy(read_images(particles[rows]))
        ours = similarity.average(*similarity.align(images, particles.poses[rows]))
        theirs = torch.from_numpy(read_frames(stack, np.array([number - 1])))[0]
        found = similarity.compare(ours, theirs, mask, particles.poses.pixel_size, 20.0)
        assert found.frc > 0.93
        assert found.mse < 0.1
