"""What Prometheus learns of sessions: sums of the open ones, and no names."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest

from cryoray.serving.sessions import OpenSessions
from cryoray.session.ledger import Ledger
from cryoray.session.ledger_records import Outcome, Seen, stack_id


def test_open_sessions_are_summed_and_not_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    for name in ("secret-target", "other", "over"):
        ledger.open_session(name, root=tmp_path, folder=tmp_path)
        stacks = [Seen(f"/data/{name}/{i}.mrcs", None, "particle", "d", 1, 1, 1.0) for i in (1, 2)]
        ledger.expect(name, stacks)
        outcome = Outcome("d", "judged", 10, 5, 3, 1, 1, 0.5, "e", 2.0)
        ledger.commit(name, stack_id(name, stacks[0].path), outcome)
    ledger.close_session("over")
    registry = CollectorRegistry()
    registry.register(OpenSessions(ledger))

    value = registry.get_sample_value
    assert value("cryoray_sessions_open") == 2
    assert value("cryoray_session_stacks", {"state": "judged"}) == 2
    assert value("cryoray_session_stacks", {"state": "pending"}) == 2
    assert value("cryoray_session_stacks", {"state": "rejected"}) == 0
    assert value("cryoray_session_images", {"fate": "kept"}) == 10
    silent = value("cryoray_session_silent_seconds")
    assert silent is not None
    assert 0 <= silent < 60
    text = generate_latest(registry).decode()
    assert "secret-target" not in text
    assert "/data" not in text
