"""What tests share: one Ray for the whole session, and the real data where they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from cryoray.engine import runtime
from cryoray.records import REASONS
from cryoray.settings import RuntimeSettings
from tests import examples

# How long an example takes says more about the machine than about the code. The same examples each time,
# so that a test that fails says something of the change; `make test-slow` looks for new ones.
hypothesis.settings.register_profile(
    "cryoray", deadline=None, derandomize="NEW_EXAMPLES" not in os.environ
)
hypothesis.settings.load_profile("cryoray")

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeSettings]:
    """A local Ray of four logical CPUs, stopped at the end; its token is not in the home folder."""
    settings = RuntimeSettings(cpus=4, gpus=0, object_store_mib=256, dashboard=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path_factory.mktemp("ray") / "auth_token"))
        runtime.connect(settings)
        yield settings
        runtime.disconnect()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real cryo-EM files."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real data in {REAL_DATA}")
    return REAL_DATA


@pytest.fixture(scope="session")
def tiny_ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble that nobody trained; its members disagree often. It names reasons."""
    path = tmp_path_factory.mktemp("ensembles") / "tiny"
    examples.save_ensemble(path, reasons=REASONS)
    return path


@pytest.fixture(scope="session")
def class_ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of 2D classes that nobody trained."""
    path = tmp_path_factory.mktemp("ensembles") / "classes"
    examples.save_ensemble(path, kind="class2d")
    return path


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `particles.star` of a RELION project with three stacks; read only."""
    return examples.write_project(tmp_path_factory.mktemp("project"))
