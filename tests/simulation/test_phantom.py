"""Structures: random ones are as large as asked, given ones are read, what is no structure is refused."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from cryoray.errors import FormatError
from cryoray.simulation.phantom import (
    FAMILIES,
    Structure,
    damaged,
    density,
    families,
    random_structure,
    read_structure,
)


@pytest.fixture(scope="module")
def dimer() -> Structure:
    return random_structure(np.random.default_rng(4), 110.0, "cyclic")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_structure_has_about_the_diameter_asked_for(family: str) -> None:
    one, again, other = (
        random_structure(np.random.default_rng(seed), 100.0, family) for seed in (1, 1, 2)
    )
    assert one.diameter == pytest.approx(100, rel=0.2)
    np.testing.assert_array_equal(one.points, again.points)
    assert len(one.points) != len(other.points)


def test_successive_projects_have_all_shapes() -> None:
    assert set(islice(families(7), len(FAMILIES))) == set(FAMILIES)


def test_density_holds_all_weight_about_the_centre(dimer: Structure) -> None:
    grid = density(dimer, 48, 3.0)
    assert grid.sum() == pytest.approx(dimer.weights.sum(), rel=1e-4)
    z, y, x = np.nonzero(grid)
    middle = np.average(np.stack([x, y, z]), axis=1, weights=grid[z, y, x])
    np.testing.assert_allclose(middle, 24, atol=1e-3)


def test_damage_takes_weight_away_and_leaves_a_chain(dimer: Structure) -> None:
    broken = damaged(dimer, np.random.default_rng(0))
    assert broken.weights.sum() < 0.95 * dimer.weights.sum()
    assert (broken.domains == -1).any()
    kept = broken.domains >= 0
    assert 0.2 < broken.weights[kept].sum() / dimer.weights.sum() < 0.6


def pdb(points: np.ndarray) -> str:
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C"
        for i, (x, y, z) in enumerate(points, 1)
    ]
    second = [f"{line[:30]}{999:8.3f}{line[38:]}" for line in lines]
    return "\n".join(["MODEL        1", *lines, "ENDMDL", "MODEL        2", *second, "ENDMDL", ""])


def cif(points: np.ndarray) -> str:
    columns = (
        "group_PDB",
        "id",
        "type_symbol",
        "label_comp_id",
        "Cartn_x",
        "Cartn_y",
        "Cartn_z",
        "pdbx_PDB_model_num",
    )
    rows = [f"ATOM {i} C ALA {x:.3f} {y:.3f} {z:.3f} 1" for i, (x, y, z) in enumerate(points, 1)]
    water = "HETATM 9999 O HOH 500 500 500 1"
    return "\n".join(
        ["data_X", "loop_", *(f"_atom_site.{column}" for column in columns), *rows, water, "#", ""]
    )


@pytest.mark.parametrize(("name", "write"), [("model.pdb", pdb), ("model.cif", cif)])
def test_an_atomic_model_is_read_centred_and_without_water(
    tmp_path: Path, name: str, write: Callable[[np.ndarray], str]
) -> None:
    points = np.random.default_rng(0).normal(scale=15, size=(300, 3)) + 50
    (tmp_path / name).write_text(write(points))
    structure = read_structure(tmp_path / name)
    assert structure.name == "model"
    np.testing.assert_allclose(structure.points, points - points.mean(0), atol=2e-3)
    assert len(np.unique(structure.domains)) > 1


def test_a_map_is_read_without_its_noise(tmp_path: Path, dimer: Structure) -> None:
    rng = np.random.default_rng(0)
    volume = density(dimer, 48, 4.0) + rng.normal(scale=0.02, size=(48, 48, 48))
    with mrcfile.new(tmp_path / "map.mrc") as file:
        file.set_data(volume.astype(np.float32))
        file.voxel_size = 4.0
    structure = read_structure(tmp_path / "map.mrc")
    assert structure.diameter == pytest.approx(dimer.diameter, rel=0.15)
    assert structure.blur > 2


def _blank_map(path: Path) -> None:
    with mrcfile.new(path) as file:
        file.set_data(np.zeros((16, 16, 16), np.float32))
        file.voxel_size = 2.0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.pdb", None, "there is no such structure"),
        ("model.txt", "ATOM", "is not a structure"),
        ("empty.pdb", "HEADER    NOTHING\n", "0 atoms"),
        ("empty.cif", "data_X\n", "0 atoms"),
        ("broken.pdb", "REMARK\nATOM      1  CA  ALA A   1      xx.000   1.0     1.0\n", "row 2"),
        ("cut.mrc", "MAP", "not a readable MRC map"),
        ("blank.mrc", _blank_map, "no voxel stands out"),
    ],
)
def test_what_is_no_structure_is_refused(
    tmp_path: Path, name: str, content: str | Callable[[Path], None] | None, said: str
) -> None:
    path = tmp_path / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_text(content)
    with pytest.raises(FormatError, match=said) as caught:
        read_structure(path)
    assert str(path) in str(caught.value)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "diameter"), [("betaGal.mrc", 180), ("5ni1_updated.cif", 70), ("1kx5.pdb", 180)]
)
def test_real_structures_have_their_size(real_data: Path, name: str, diameter: float) -> None:
    assert read_structure(real_data / "maps" / name).diameter == pytest.approx(diameter, rel=0.1)
