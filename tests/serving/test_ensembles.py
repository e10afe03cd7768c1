"""With which ensembles a service starts, and which shadow it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoray.errors import SettingsError
from cryoray.models.registry import promote
from cryoray.serving.ensembles import find_ensembles, find_shadow


def test_folders_and_names_are_served_under_their_names(
    tiny_ensemble: Path, class_ensemble: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    promote(tiny_ensemble, registry, "live")
    found = find_ensembles((str(class_ensemble), "live"), registry)
    assert {name: one.kind for name, one in found.items()} == {
        class_ensemble.name: "class2d",
        "live": "particle",
    }
    with pytest.raises(SettingsError, match="two ensembles are named 'live'"):
        find_ensembles(("live", "live"), registry)


def test_without_a_name_what_ships_is_served_under_its_kind(tmp_path: Path) -> None:
    found = find_ensembles((), tmp_path / "registry")
    assert {one.kind for one in found.values()} >= {"particle", "class2d"}
    assert all(name == one.kind for name, one in found.items())


def test_a_shadow_has_a_name_of_its_own_and_the_kind_of_one_that_is_served(
    tiny_ensemble: Path, class_ensemble: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    promote(tiny_ensemble, registry, "candidate")
    served = find_ensembles((str(tiny_ensemble),), registry)
    assert find_shadow(None, registry, served) is None
    shadow = find_shadow("candidate", registry, served)
    assert shadow is not None
    assert shadow.name == "candidate"
    with pytest.raises(SettingsError, match="has the name of a served ensemble, 'tiny'"):
        find_shadow(str(tiny_ensemble), registry, served)
    with pytest.raises(SettingsError, match="judges class2d images, which none here does"):
        find_shadow(str(class_ensemble), registry, served)
