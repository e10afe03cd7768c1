"""What was asked of the flow evaluate, and is now one of its own, is still done."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryoray.errors import InputError
from flows.evaluate import cross_validate, evaluate

pytestmark = pytest.mark.long


def test_a_cross_validation_that_was_asked_of_evaluate(
    tmp_path: Path, prefect: None, caplog: pytest.LogCaptureFixture
) -> None:
    nothing, out = tmp_path / "nothing", tmp_path / "out"
    with pytest.raises(InputError, match="is not a prepared set"):
        cross_validate([nothing], out)
    with pytest.raises(InputError, match="there is no such ensemble"):
        evaluate(tmp_path / "none", nothing, out)
    assert "cross_validate.folds" not in caplog.text
    # The ensemble is not looked at: each fold has its own.
    with pytest.raises(InputError, match="is not a prepared set"):
        evaluate(tmp_path / "none", nothing, out, {"evaluate": {"cross_validate": 2}})
    assert "is now the flow cross-validate with cross_validate.folds" in caplog.text
