"""A ledger of an earlier version becomes one of this, with all that is in it; a later one is refused."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sql

from cryoray.errors import SettingsError
from cryoray.session import schema
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Outcome
from cryoray.session.page.exposures import Exposures, Limit

ROWS = """
INSERT INTO sessions (name, root, folder, state, trainable, token_hash, salt, host, opened, seen, audit,
    baseline) VALUES ('s', '/data', '/out', 'closed', true, 'x', 'salt', 'h', 1, 2, 50, '{}');
INSERT INTO stacks (id, session, path, kind, state, digest, size, mtime_ns, rows, kept, discarded, review,
    quarantined, attempts, settled) VALUES ('k1', 's', '/data/a.mrcs', 'particle', 'judged', 'd', 9, 9, 10,
    6, 3, 1, 0, 0, 1);
INSERT INTO stacks (id, session, path, kind, state, digest, size, mtime_ns, rows, kept, discarded, review,
    quarantined, attempts, reason, settled) VALUES ('k2', 's', '/data/b.mrcs', 'particle', 'aside', 'd', 9,
    9, 0, 0, 0, 0, 0, 1, 'why', 1);
INSERT INTO candidates (stack, "row", session, teaches) VALUES ('k1', 3, 's', 0.5);
INSERT INTO candidates (stack, "row", session, teaches) VALUES ('k1', 4, 's', 0.75);
INSERT INTO overrides (stack, "row", session, digest, image, keep, before, score, who, at) VALUES
    ('k1', 9, 's', 'd', '10@a.mrcs', true, 'review', 0.5, 'Ada', 3);
INSERT INTO events (id, session, name, at, data, written, posted) VALUES
    ('e', 's', 'stack.aside', 1, '{}', true, false);
"""


@pytest.fixture
def old(url: str) -> str:
    """The URL of a ledger that commit 0956c88 made and filled."""
    engine = sql.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    text = Path(__file__).with_name(f"schema_1_{engine.dialect.name}.sql").read_text()
    with engine.begin() as connection:
        for statement in (text + ROWS).split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement)
    engine.dispose()
    return url


def columns(url: str) -> dict[str, set[str]]:
    engine = sql.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    inspector = sql.inspect(engine)
    found = {
        table: {column["name"] for column in inspector.get_columns(table)}
        for table in inspector.get_table_names()
    }
    engine.dispose()
    return found


def test_the_first_version_keeps_all_that_is_in_it(old: str) -> None:
    for _ in range(2):  # nothing is done twice
        ledger = Ledger(old)
        (judged,), (rejected,) = ledger.stacks("s", "judged"), ledger.stacks("s", "rejected")
        assert (judged.path, judged.kept) == ("/data/a.mrcs", 6)
        assert (rejected.path, rejected.reason) == ("/data/b.mrcs", "why")
        assert [(row.row, row.information) for row in ledger.candidates("s", 9)] == [
            (4, 0.75), (3, 0.5),
        ]  # fmt: skip
        assert [(row.row, row.keep) for row in ledger.overrides("s")] == [(9, True)]
        assert [row.name for row in ledger.events("s", unposted=True)] == ["stack.rejected"]
        session = ledger.session("s")
        assert session is not None
        assert (session.trainable, session.roots) == (True, None)
        ledger.close()


def test_a_migrated_ledger_has_the_tables_of_a_new_one(old: str, tmp_path: Path) -> None:
    Ledger(old).close()
    new = f"sqlite:///{tmp_path}/new.sqlite"
    Ledger(new).close()
    assert columns(old) == columns(new)


def test_the_second_version_judged_without_a_profile(old: str) -> None:
    engine = sql.create_engine(old.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        for statement in schema.MIGRATIONS[2]:
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("CREATE TABLE schema_version (version INTEGER NOT NULL)")
        connection.exec_driver_sql("INSERT INTO schema_version VALUES (2)")
    engine.dispose()
    ledger = Ledger(old)
    session, stack = ledger.session("s"), ledger.stack("k1")
    assert session is not None
    assert stack is not None
    assert (session.profile, session.profiled, stack.profile) == (None, None, None)
    assert ledger.outdated("s", "p") == ["k1"], "not what was rejected"
    ledger.close()


def test_limits_that_the_page_had_kept_beside_the_ledger_stay(url: str) -> None:
    # As a ledger of the third version is, where the page made the table of limits by itself.
    ledger = Ledger(url)
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version = 3")
        connection.exec_driver_sql(
            "INSERT INTO exposure_limits VALUES ('s', 'ctf', NULL, 6, 'A', 1)"
        )
    ledger.close()
    ledger = Ledger(url)
    (limit,) = Exposures(ledger).limits("s").items()
    assert limit == ("ctf", Limit(None, 6, "A", 1))
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE exposure_limits")
        connection.exec_driver_sql("UPDATE schema_version SET version = 3")
    ledger.close()
    ledger = Ledger(url)  # and where nobody had opened the page
    assert Exposures(ledger).limits("s") == {}
    Exposures(ledger).set_limits("s", {"ctf": Limit(None, 6)}, "A")
    assert Exposures(ledger).limits("s")["ctf"].high == 6
    ledger.close()


def test_whoever_comes_first_migrates_and_the_others_find_it_done(old: str) -> None:
    failures: list[BaseException] = []

    def come() -> None:
        try:
            Ledger(old).close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=come) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    ledger = Ledger(old)
    assert len(ledger.stacks("s")) == 2
    ledger.close()


def test_a_ledger_of_a_later_version_is_refused(url: str) -> None:
    ledger = Ledger(url)
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE schema_version SET version = {schema.VERSION + 1}")
    ledger.close()
    with pytest.raises(SettingsError, match="a later one"):
        Ledger(url)


def test_versions_have_no_gaps() -> None:
    assert list(schema.MIGRATIONS) == list(range(2, schema.VERSION + 1))


def test_a_record_of_an_earlier_version_is_understood() -> None:
    record = {
        "digest": "d", "state": "aside", "rows": 0, "kept": 0, "discarded": 0, "review": 0,
        "quarantined": 0, "score": None, "ensemble": None, "at": 1.0, "reason": "why",
        "micrographs": [], "candidates": [], "sample": [],
    }  # fmt: skip
    outcome = Outcome.from_record(record)
    assert (outcome.state, outcome.profile) == ("rejected", None)
