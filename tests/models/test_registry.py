"""Ensembles by name: what is active is always whole, and the way back is remembered."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from cryoray.errors import EnsembleError, SettingsError
from cryoray.models import registry
from cryoray.models.ensemble import Ensemble
from tests.examples import Saved, save_ensemble

NAME = "ribosomes"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Saved]:
    folder = tmp_path_factory.mktemp("saved")
    return [save_ensemble(folder / f"e{seed}", seed=seed) for seed in range(3)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def rolled_back(root: Path) -> str:
    """The digest that is active after a rollback."""
    change = registry.rollback(root, NAME)
    assert change is not None
    return change.digest


def digests(root: Path) -> list[str]:
    return [line.digest for line in registry.history(root, NAME)]


def test_what_was_promoted_is_found_by_its_name(saved: list[Saved], root: Path) -> None:
    assert registry.active(root, NAME) is None
    change = registry.promote(saved[0].path, root, NAME, reason="better on ribosomes")
    assert (change.digest, change.instead_of) == (saved[0].digest, None)
    path = registry.resolve(NAME, root)
    assert path == root / NAME / saved[0].digest
    assert Ensemble.load(path).digest == registry.active(root, NAME) == saved[0].digest
    assert (path / "card.md").read_text() == "# Untrained\n"
    assert [line.reason for line in registry.history(root, NAME)] == ["better on ribosomes"]


def test_an_ensemble_that_ships_judges_its_kind_until_another_is_promoted(
    saved: list[Saved], root: Path, tmp_path: Path
) -> None:
    ships = tmp_path / "ships"
    shutil.copytree(saved[0].path, ships / "particle")
    assert registry.resolve(None, root, "particle", ships) == ships / "particle"
    assert registry.resolve("particle", root, root=ships) == ships / "particle"
    registry.promote(saved[1].path, root, "particle")
    for named in (None, "particle"):
        path = registry.resolve(named, root, "particle", ships)
        assert path == root / "particle" / saved[1].digest
    with pytest.raises(EnsembleError, match=r"none for class2d images: .*; give --ensemble"):
        registry.resolve(None, root, "class2d", ships)
    assert registry.shipped("..", ships) is None


def test_3d_classes_are_for_the_judge_of_2d_classes_unless_they_have_their_own(
    saved: list[Saved], root: Path
) -> None:
    registry.promote(saved[0].path, root, "class2d")
    assert registry.resolve(None, root, "class3d") == root / "class2d" / saved[0].digest
    registry.promote(saved[1].path, root, "class3d")
    assert registry.resolve(None, root, "class3d") == root / "class3d" / saved[1].digest


def test_what_ships_is_whole_and_of_the_kind_that_its_folder_names() -> None:
    for path in registry.SHIPPED.glob("[a-z]*"):
        # 3D classes are judged by pictures of them, as 2D classes are.
        assert Ensemble.load(path).kind == path.name.replace("class3d", "class2d")
        assert (path / "card.md").is_file()


def test_what_ships_is_small() -> None:
    size = sum(file.stat().st_size for file in registry.SHIPPED.rglob("*") if file.is_file())
    assert size <= 15e6


@pytest.mark.long
def test_rollback_undoes_promotions_one_by_one(saved: list[Saved], root: Path) -> None:
    for at in (0, 1, 0, 2):
        registry.promote(saved[at].path, root, NAME)
    for before in (0, 1, 0):
        assert rolled_back(root) == saved[before].digest
        assert registry.active(root, NAME) == saved[before].digest
    with pytest.raises(EnsembleError, match="nothing was active under this name before"):
        registry.rollback(root, NAME)
    registry.promote(saved[2].path, root, NAME)
    assert rolled_back(root) == saved[0].digest


def test_promoting_the_active_one_again_changes_nothing(saved: list[Saved], root: Path) -> None:
    registry.promote(saved[0].path, root, NAME)
    registry.promote(saved[1].path, root, NAME)
    registry.promote(saved[1].path, root, NAME)
    assert rolled_back(root) == saved[0].digest


def test_a_rollback_of_what_is_no_longer_active_does_nothing(
    saved: list[Saved], root: Path
) -> None:
    for one in saved:
        registry.promote(one.path, root, NAME)
    assert registry.rollback(root, NAME, instead_of=saved[1].digest) is None
    assert registry.active(root, NAME) == saved[2].digest
    assert registry.rollback(root, NAME, instead_of=saved[2].digest) is not None
    assert registry.active(root, NAME) == saved[1].digest


@pytest.mark.long
def test_what_cannot_be_promoted_changes_nothing(
    saved: list[Saved], root: Path, tmp_path: Path
) -> None:
    registry.promote(saved[0].path, root, NAME)
    damaged = save_ensemble(tmp_path / "damaged", seed=5).path
    weights = bytearray((damaged / "d1.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "d1.safetensors").write_bytes(weights)
    classes = save_ensemble(tmp_path / "classes", "class2d").path
    for path, says in (
        (damaged, "not the ones that its digest names"),
        (classes, "judges class2d images, this holds particle images"),
        (tmp_path, "not an ensemble"),
    ):
        with pytest.raises(EnsembleError, match=says):
            registry.promote(path, root, NAME)
    assert digests(root) == [saved[0].digest]
    assert registry.active(root, NAME) == saved[0].digest
    assert not [entry for entry in (root / NAME).iterdir() if entry.name.startswith(".d")]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", ".hidden", "a b", "x" * 101])
def test_a_name_is_no_path(saved: list[Saved], root: Path, name: str) -> None:
    for change in (
        lambda: registry.promote(saved[0].path, root, name),
        lambda: registry.rollback(root, name),
    ):
        with pytest.raises(SettingsError, match="is not a name for an ensemble"):
            change()
    with pytest.raises(EnsembleError, match="there is no such ensemble"):
        registry.resolve(name, root)


@pytest.mark.long
def test_an_installed_copy_that_was_damaged_is_replaced(saved: list[Saved], root: Path) -> None:
    place = root / NAME / registry.install(saved[0].path, root, NAME)
    (place / "d2.safetensors").write_bytes(b"")
    registry.promote(saved[0].path, root, NAME)
    assert Ensemble.load(place).digest == saved[0].digest


def test_a_file_that_holds_no_digest_is_named(saved: list[Saved], root: Path) -> None:
    registry.promote(saved[0].path, root, NAME)
    (root / NAME / "active").write_text("../../elsewhere\n")
    with pytest.raises(EnsembleError, match="active: holds no digest"):
        registry.resolve(NAME, root)


@pytest.mark.long
def test_many_who_promote_at_once_leave_a_history_that_ends_with_the_active_one(
    saved: list[Saved], root: Path
) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda one: registry.promote(one.path, root, NAME), saved * 4))
    assert digests(root)[-1] == registry.active(root, NAME)
    assert all(before != after for before, after in pairwise(digests(root)))


def test_who_installs_the_same_meanwhile_is_not_replaced(
    saved: list[Saved], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copytree = shutil.copytree

    def slow(source: Path, target: Path) -> None:
        copytree(source, target)
        monkeypatch.setattr("cryoray.models.registry.shutil.copytree", copytree)
        registry.install(saved[0].path, root, NAME)
        used.append((root / NAME / saved[0].digest).stat().st_ino)

    used: list[int] = []
    monkeypatch.setattr("cryoray.models.registry.shutil.copytree", slow)
    digest = registry.install(saved[0].path, root, NAME)
    assert used == [(root / NAME / digest).stat().st_ino]
    assert not list((root / NAME).glob(f".{digest[:12]}.*"))


@pytest.mark.long
@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_a_crash_before_the_history_was_written_is_made_good(
    saved: list[Saved], root: Path, verb: str
) -> None:
    registry.promote(saved[0].path, root, NAME)
    registry.promote(saved[1].path, root, NAME)
    code = (
        "import os, signal, sys; from pathlib import Path; from cryoray.models import registry\n"
        "registry._write_down = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "root, name, verb, path = sys.argv[1:]\n"
        "registry.rollback(Path(root), name) if verb == 'rollback' else "
        "registry.promote(Path(path), Path(root), name)"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, root, NAME, verb, saved[2].path], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    if verb == "promote":
        assert registry.active(root, NAME) == saved[2].digest
        assert rolled_back(root) == saved[1].digest
    else:
        assert registry.active(root, NAME) == saved[0].digest
        with pytest.raises(EnsembleError, match="nothing was active"):
            registry.rollback(root, NAME)
    assert digests(root)[-1] == registry.active(root, NAME)


def test_a_folder_that_holds_another_ensemble_than_its_name_is_refused(
    saved: list[Saved], root: Path
) -> None:
    for one in saved[:2]:
        registry.install(one.path, root, NAME)
    first, second = (root / NAME / one.digest for one in saved[:2])
    shutil.rmtree(first)
    second.rename(first)
    (root / NAME / "active").write_text(saved[0].digest)
    with pytest.raises(EnsembleError, match="holds another ensemble than its name says"):
        Ensemble.load(registry.resolve(NAME, root))
