"""Promoting as a flow: the registry changes, and Prefect keeps the history."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoray.models import registry
from cryoray.models.ensemble import Ensemble
from flows.promote import promote, rollback
from tests.examples import save_ensemble

pytestmark = pytest.mark.ray  # starts a Prefect server, as slow to start


def test_a_flow_promotes_and_rolls_back(prefect: None, tmp_path: Path, tiny_ensemble: Path) -> None:
    root = tmp_path / "registry"
    over = {"registry": str(root)}
    first = Ensemble.load(tiny_ensemble).digest
    second = save_ensemble(tmp_path / "other", seed=7)
    assert promote(tiny_ensemble, "live", over) == first
    assert promote(str(second.path), "live", over) == second.digest
    assert registry.active(root, "live") == second.digest
    assert rollback("live", over) == first
    assert registry.active(root, "live") == first
