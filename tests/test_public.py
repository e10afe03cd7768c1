"""The public face: what is exported, how little importing it costs, and an example as long as a notebook."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import cryoray
from cryoray.formats.star import parse
from cryoray.formats.volume import write_volume
from cryoray.settings import ClassifySettings
from tests.classes import write_class_job
from tests.examples import save_ensemble
from tests.half_maps import PIXEL, half_maps, phantom

EXPORTED = {
    "Client",
    "CryorayError",
    "Ensemble",
    "EnsembleError",
    "FormatError",
    "InputError",
    "InternalError",
    "Particles",
    "QuarantineError",
    "SelectionError",
    "Settings",
    "SettingsError",
    "Verdicts",
    "adapt",
    "classify",
    "cross_validate",
    "evaluate",
    "fsc",
    "ingest",
    "load_ensemble",
    "load_settings",
    "open",
    "simulate",
    "train",
}


def test_what_is_public_is_exported_by_name_and_explained() -> None:
    assert set(cryoray.__all__) == EXPORTED == set(dir(cryoray)) - {"__version__"}
    unexplained = [name for name in EXPORTED if not inspect.getdoc(getattr(cryoray, name))]
    assert unexplained == []
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cryoray.nothing  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys; import cryoray; "
        "print(*sorted({'torch', 'ray', 'numpy', 'pyarrow', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_an_ensemble_of_a_notebook_needs_no_ray(tiny_ensemble: Path, project: Path) -> None:
    code = (
        f"import sys, cryoray; e = cryoray.load_ensemble({str(tiny_ensemble)!r}); "
        f"print(len(e.classify({str(project)!r})), 'ray' in sys.modules, 'matplotlib' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["175", "False", "False"]


def test_a_notebook(tiny_ensemble: Path, project: Path, tmp_path: Path) -> None:
    particles = cryoray.open(project)
    assert repr(particles) == "<175 particles of particles.star, 2.5 Å/px, 5 columns>"
    defocus = particles.column("rlnDefocusU")
    assert len(particles[defocus > np.median(defocus)]) < len(particles)
    ensemble = cryoray.load_ensemble(tiny_ensemble)
    assert repr(ensemble).startswith(f"<ensemble {ensemble.digest[:12]} for particle, keep ≥ 0.5")

    verdicts = ensemble.classify(particles[:100])
    assert len(verdicts) == 100
    frame = verdicts.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame["image"].tolist() == particles.images[:100].tolist()
    best = frame.query("score > .5")
    assert 0 < len(best) < 100
    assert len(verdicts.kept) + len(verdicts.discarded) + len(verdicts.review) == 100
    verdicts.plot(4).savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000

    out = verdicts.save(tmp_path / "out")
    kept = parse(out / "kept.star")["particles"]
    assert len(kept) == len(verdicts.kept)
    saved = pq.read_table(out / "verdicts.parquet")
    assert saved.schema.metadata[b"ensemble"].decode() == ensemble.digest


def test_it_says_what_the_command_says(tiny_ensemble: Path, project: Path, tmp_path: Path) -> None:
    settings = cryoray.Settings(classify=ClassifySettings(ensemble=str(tiny_ensemble)))
    out = cryoray.classify(project, tmp_path / "out", settings)
    there = pq.read_table(out / "verdicts.parquet")
    here = cryoray.load_ensemble(tiny_ensemble).classify(project)
    for name in ("score", "d1", "d2", "d3", "verdict", "reason"):
        assert there[name].combine_chunks().equals(here.judged[name].combine_chunks())


def test_classes_are_saved_as_relion_s_select_job_has_them(tmp_path: Path) -> None:
    job = write_class_job(tmp_path)
    save_ensemble(tmp_path / "classes", kind="class2d")
    verdicts = cryoray.load_ensemble(tmp_path / "classes").classify(job)
    out = verdicts.save(tmp_path / "out")
    selected = parse(out / "backup_selection.star")[""].numbers("rlnSelected")
    assert selected.sum() == len(verdicts.kept)


def test_what_is_wrong_is_one_sentence(tiny_ensemble: Path, project: Path, tmp_path: Path) -> None:
    with pytest.raises(cryoray.InputError, match=r"there is no such file or folder"):
        cryoray.open(tmp_path / "nowhere.star")
    with pytest.raises(cryoray.InputError, match=r"has no column rlnNothing; choose from rln"):
        cryoray.open(project).column("rlnNothing")
    job = write_class_job(tmp_path)
    with pytest.raises(cryoray.EnsembleError, match="judges particle images, this holds class2d"):
        cryoray.load_ensemble(tiny_ensemble).classify(cryoray.open(job, "class2d"))


def test_the_fsc_of_two_half_maps(tmp_path: Path) -> None:
    first, second = (
        write_volume(tmp_path / f"half{i}.mrc", half.numpy(), PIXEL)
        for i, half in enumerate(half_maps(phantom(32, seed=1), 1.0), start=1)
    )
    found = cryoray.fsc(first, second)
    assert found.unmasked[0] == pytest.approx(1, abs=0.1)
    resolution = found.resolution(0.143).interpolated
    assert resolution is not None
    assert resolution >= 2 * PIXEL
    masked = cryoray.fsc(first, second, "auto")
    assert masked.corrected is not None
    assert not list(tmp_path.glob("mask*"))
