"""Configuration files for Ray Serve mean what they say: what it would ignore is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cryoray.errors import SettingsError
from cryoray.serving.config import load, main
from cryoray.serving.scaling import ByQueuedImages, Queue

FILES = sorted((Path(__file__).parents[2] / "cluster" / "serve").glob("*.yaml"))
FACILITY = next(file for file in FILES if file.stem == "facility")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_files_that_ship_are_good_and_listen_at_home(file: Path) -> None:
    schema = load(file)
    assert schema.http_options.host == "127.0.0.1"
    assert [one.import_path for one in schema.applications] == ["cryoray.serving.app:build"]


def changed(tmp_path: Path, path: str, value: Any) -> Path:
    """The facility's file with one more key, ``a.0.b`` deep, or another value there."""
    given = yaml.safe_load(FACILITY.read_text())
    *way, last = path.split(".")
    at = given
    for step in way:
        at = at[int(step)] if step.isdigit() else at[step]
    at[last] = value
    file = tmp_path / "changed.yaml"
    file.write_text(yaml.safe_dump(given))
    return file


APP = "applications.0"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("proxy_locations", "HeadOnly", "no setting proxy_locations"),
        ("http_options.hosts", "127.0.0.1", "no setting http_options.hosts"),
        ("logging_config.encodings", "JSON", "encodings"),
        (f"{APP}.importpath", "a:b", r"no setting applications\[0\].importpath"),
        (f"{APP}.args.ensemble", ["a"], "args.ensemble: extra inputs are not permitted"),
        (f"{APP}.args.batch", 0, "args.batch: input should be greater"),
        (f"{APP}.args.ensembles", [], "args.ensembles is missing"),
        (f"{APP}.deployments.1.name", "judge", "no deployment 'judge'.*judge-particles"),
        (f"{APP}.deployments.1.num_replica", 2, r"deployments\[1\].num_replica"),
        (f"{APP}.deployments.1.ray_actor_options.num_gpu", 1, "ray_actor_options.num_gpu"),
        (f"{APP}.deployments.1.ray_actor_options.num_gpus", -1, "num_gpus"),
        (
            f"{APP}.deployments.1.autoscaling_config.max_replica",
            9,
            "autoscaling_config.max_replica",
        ),
        (f"{APP}.deployments.1.autoscaling_config.min_replicas", 99, "max_replicas"),
        (f"{APP}.deployments.1.autoscaling_config.policy.kwargs", {}, "policy.kwargs"),
        (
            f"{APP}.deployments.1.autoscaling_config.policy.policy_kwargs",
            {"images": 1},
            "autoscaling_config: .*images",
        ),
        (
            f"{APP}.deployments.1.autoscaling_config.policy.policy_kwargs",
            {"images_per_replica": 0},
            "must be more than 0",
        ),
    ],
)
def test_what_ray_serve_would_ignore_or_fail_on_later_is_refused(
    tmp_path: Path, path: str, value: Any, says: str
) -> None:
    with pytest.raises(SettingsError, match=says) as error:
        load(changed(tmp_path, path, value))
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not YAML"),
        ("proxy_location: HeadOnly\nproxy_location: Disabled\napplications: []", "there twice"),
        ("- 1", "changed.yaml: "),
    ],
)
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "changed.yaml").write_text(text)
    with pytest.raises(SettingsError, match=says):
        load(tmp_path / "changed.yaml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path / "absent.yaml")


def test_the_check_is_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(FACILITY)]) == 0
    assert main([str(changed(tmp_path, "proxy_locations", 1))]) == 2
    assert "no setting proxy_locations" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "wanted"),
    [({}, 1), ({"a": 0}, 1), ({"a": 100, "b": 0}, 1), ({"a": 101}, 2), ({"a": 950, "b": 950}, 10)],
)
def test_replicas_are_as_many_as_the_waiting_images_need(
    said: dict[str, float], wanted: int
) -> None:
    context = SimpleNamespace(aggregated_metrics={"queued_images": said} if said else {})
    assert ByQueuedImages(100)(context) == (wanted, {})


async def stats(queue: Queue) -> float:
    return (await queue.record_autoscaling_stats())["queued_images"]


def test_a_queue_nobody_speaks_of_any_more_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    queue = Queue()
    assert asyncio.run(stats(queue)) == 0
    queue.heard(500)
    assert asyncio.run(stats(queue)) == 500
    monkeypatch.setattr("cryoray.serving.scaling._STALE_SECONDS", -1.0)
    assert asyncio.run(stats(queue)) == 0
