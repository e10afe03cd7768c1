"""Cluster files that are not Kubernetes': Ray's own cluster file, scripts, the image, the monitoring."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cryoray.serving.counts import Counts
from cryoray.serving.sessions import OpenSessions
from cryoray.session.ledger import Ledger

CLUSTER = Path(__file__).parents[2] / "cluster"
SCRIPTS = sorted(CLUSTER.rglob("*.sh"))
MONITORING = CLUSTER / "monitoring"
MADE: dict[str, Any] = runpy.run_path(str(MONITORING / "dashboards.py"))

#: What Ray itself exports, as its own dashboards ask for it.
RAYS = {
    "ray_node_cpu_utilization", "ray_node_cpu_count", "ray_node_mem_used", "ray_node_mem_total",
    "ray_node_disk_io_read_speed", "ray_node_disk_free", "ray_node_disk_usage",
    "ray_node_gpus_utilization", "ray_node_gram_used", "ray_object_store_memory",
    "ray_train_controller_state", "ray_train_report_total_blocked_time_s",
}  # fmt: skip
#: Counters of `cryoray.engine.meter`, as Ray exports them.
INGEST = {f"ray_cryoray_ingest_{what}_total" for what in ("rows", "bytes", "quarantined")}


def test_ray_accepts_the_on_premises_cluster_and_no_unknown_key() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = yaml.safe_load((CLUSTER / "onprem" / "cluster.yaml").read_text())
    validate_config(prepare_config(given))
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate_config(prepare_config({**given, "idle_timeout_minute": 3}))
    for command in given["head_start_ray_commands"] + given["worker_start_ray_commands"]:
        if "ray start" in command:
            assert "RAY_AUTH_MODE=token" in command
    assert "--dashboard-host=127.0.0.1" in given["head_start_ray_commands"][1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_scripts_are_scripts(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.system
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_shellcheck_has_nothing_to_say(script: Path) -> None:
    done = subprocess.run(
        [_program("shellcheck"), script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.system
def test_prometheus_accepts_its_files_and_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    promtool = _program("promtool")
    for words in (
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
    ):
        done = subprocess.run(
            [promtool, *words], cwd=MONITORING, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: run `make test-system`, which installs it")
    return found


def exported(tmp_path: Path) -> set[str]:
    """Names of all that a service exports that has counted everything that it counts."""
    counts = Counts(512)
    ledger = Ledger(tmp_path / "ledger.sqlite")
    counts.registry.register(OpenSessions(ledger))
    names = set()
    for family in counts.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
        names |= {family.name + suffix for suffix in suffixes.get(family.type, [""])}
    ledger.close()
    return names


def asked(queries: Iterable[str]) -> set[str]:
    """Names of metrics in queries."""
    return {
        name
        for query in queries
        for name in re.findall(
            r"\b(?:ray_)?(?:cryoray|node|object_store|train)_[a-z_]+\b", _bare(query)
        )
    }


def _bare(query: str) -> str:
    """Without label lists: ``by (…)`` and ``{…}``."""
    return re.sub(r"\b(by|on)\s*\([^)]*\)|\{[^}]*\}", "", query)


def test_dashboards_are_what_their_source_says_and_ask_for_what_is_exported(tmp_path: Path) -> None:
    known = exported(tmp_path) | RAYS | INGEST
    shown: set[str] = set()
    assert {file.stem for file in (MONITORING / "grafana").glob("*.json")} == set(
        MADE["DASHBOARDS"]
    )
    for name, (_, panels) in MADE["DASHBOARDS"].items():
        written = (MONITORING / "grafana" / f"{name}.json").read_text()
        assert written == MADE["text"](name), "run python cluster/monitoring/dashboards.py"
        shown |= asked(query for *_, queries in panels for query in queries)
    assert shown <= known
    left_out = {
        name for name in exported(tmp_path) if not name.endswith(("_bucket", "_sum", "_count"))
    }
    assert left_out <= shown, "what the service counts is on a dashboard"


def test_alerts_ask_for_what_is_exported_and_say_what_to_do(tmp_path: Path) -> None:
    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"][0]["rules"]
    assert asked(rule["expr"] for rule in rules) <= exported(tmp_path) | RAYS
    for rule in rules:
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_rays_names_are_those_of_its_own_dashboards() -> None:
    import ray

    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    for name in RAYS:
        assert name in text, name


def test_the_image_runs_as_nobody_s_root_with_what_is_pinned() -> None:
    lines = (CLUSTER / "Containerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == ["10001"]
    assert lines.index("USER 10001") > max(
        i for i, line in enumerate(lines) if line.startswith("RUN")
    )
    text = "\n".join(lines)
    assert "--constraint constraints.txt" in text
    assert "RAY_AUTH_MODE=token" in text
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.M):
        for name in source.split():
            assert (CLUSTER.parent / name).exists(), name


def test_the_image_lists_what_licences_its_packages_have() -> None:
    listed = subprocess.run(
        [sys.executable, CLUSTER / "licences.py"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert any(line.startswith("ray ") and "Apache" in line for line in listed)
    assert any(line.startswith("numpy ") and "BSD" in line for line in listed)
    assert all(": " in line for line in listed)
    text = (CLUSTER / "Containerfile").read_text()
    assert "LICENCES.txt" in text
    assert "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=cryoray.serving.proxy.callback" in text
