"""What tests of sessions share: a ledger on either database, and a judging service without Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from cryoray.session.ledger import Ledger


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An empty folder that is watched."""
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL of our own, on a socket in a folder; gone at the end."""
    there = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not there:
        pytest.skip("no PostgreSQL is installed")
    # PostgreSQL refuses to run as root, and pytest closes its own folders to other users whenever it starts.
    user = "postgres" if os.geteuid() == 0 else None
    with TemporaryDirectory(prefix="cryoray-postgres-") as temporary:
        folder = Path(temporary)
        if user:
            shutil.chown(folder, user)

        def run(*words: str | Path) -> None:
            subprocess.run(
                words, check=True, user=user, capture_output=True, cwd=folder, timeout=120
            )

        run(
            there[-1] / "initdb", "-D", folder / "data", "-A", "trust", "-U", "cryoray", "--no-sync"
        )
        started = ("-o", f"-k {folder} -c listen_addresses='' -c fsync=off", "-l", folder / "log")
        run(there[-1] / "pg_ctl", "-D", folder / "data", *started, "-w", "start")
        try:
            yield f"postgresql://cryoray@/postgres?host={folder}"
        finally:
            run(there[-1] / "pg_ctl", "-D", folder / "data", "-m", "immediate", "-w", "stop")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.system)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new, empty ledger can be."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    server: str = request.getfixturevalue("postgres")
    import psycopg

    name = f"ledger_{abs(hash(request.node.nodeid))}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    made = Ledger(url)
    yield made
    made.close()
