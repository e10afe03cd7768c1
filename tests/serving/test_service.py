"""The service on Ray Serve, and that it says what `classify` says."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from ray import serve as ray_serve

from cryoray.errors import InputError, SettingsError
from cryoray.models.registry import active, install, promote
from cryoray.protocol.client import Client
from cryoray.records import Verdicts
from cryoray.serving import local
from cryoray.serving.app import Arguments, Running, build, start
from cryoray.serving.ensembles import find_ensembles
from cryoray.settings import ClassifySettings, RuntimeSettings, ServeSettings, Settings
from cryoray.verbs.classify import classify
from tests.examples import save_ensemble


def until(happens: Callable[[], Any], work: Sequence[Future[Any]] = (), seconds: float = 60) -> Any:
    """What it returns, as soon as that is true; raises what the work did meanwhile."""
    end = time.monotonic() + seconds
    while not (found := happens()):
        for one in work:
            if one.done():
                one.result()
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


#: Smaller than a stack, so that requests are cut, and larger than the smallest request.
BATCH = 32


@pytest.fixture(scope="module")
def registry_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "registry"


@pytest.fixture(scope="module")
def running(
    ray_cluster: RuntimeSettings,
    project: Path,
    tiny_ensemble: Path,
    registry_root: Path,
) -> Iterator[Running]:
    other = save_ensemble(registry_root.parent / "other", seed=7).path
    promote(other, registry_root, "live")
    promote(tiny_ensemble, registry_root, "candidate")
    serving = ServeSettings(
        ensembles=(str(tiny_ensemble), "live"),
        shadow="candidate",
        roots=(project.parent,),
        port=0,
        token="a-token-for-tests",
        batch=BATCH,
        poll=0.2,
        judges=1,
        preparers=1,
    )
    with start(Settings(registry=registry_root, serve=serving)) as running:
        yield running


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    with running.client() as client:
        yield client


@pytest.mark.ray
def test_classify_and_the_service_agree_whatever_the_batch(
    client: Client, project: Path, tiny_ensemble: Path, tmp_path: Path
) -> None:
    settings = Settings(classify=ClassifySettings(ensemble=str(tiny_ensemble)))
    table = pq.read_table(classify(project, tmp_path / "out", settings) / "verdicts.parquet")
    n = len(table)
    assert len(set(table["reason"].to_pylist())) > 2

    def ask(size: int) -> None:
        parts = [(first, min(first + size, n)) for first in range(0, n, size)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda rows: client.judge(project, rows), parts))
        said = Verdicts.together(answers).judged.to_pylist()
        assert [one["row"] for one in said] == list(range(n))
        assert [one["image"] for one in said] == table["image"].to_pylist()
        assert [one["verdict"] for one in said] == table["verdict"].to_pylist()
        assert [one["reason"] for one in said] == table["reason"].to_pylist()
        assert [one["d3"] is None for one in said] == table["d3"].is_null().to_pylist()
        scores = np.array([one["score"] for one in said])
        np.testing.assert_allclose(scores, table["score"].to_numpy(), atol=1e-4)

    for size in (n, 50, 7):
        ask(size)


@pytest.mark.ray
def test_a_stack_alone_is_judged_with_the_metadata_beside_it(client: Client, project: Path) -> None:
    stack = project.parent / "Extract/job001/mic_2.mrcs"
    by_stack = {one["image"]: one for one in client.judge(stack).judged.to_pylist()}
    by_star = {one["image"]: one for one in client.judge(project).judged.to_pylist()}
    assert len(by_stack) == 35
    for image, one in by_stack.items():
        assert one["score"] == by_star[image]["score"]
    uploaded = client.judge_upload(stack).judged.to_pylist()
    assert len(uploaded) == 35
    # Pixels alone are another matter: the metadata count.
    differences = [
        abs(with_metadata["score"] - without["score"])
        for with_metadata, without in zip(by_stack.values(), uploaded, strict=True)
    ]
    assert max(differences) > 1e-3


@pytest.mark.ray
def test_each_ensemble_answers_by_its_name(client: Client, running: Running, project: Path) -> None:
    first, other = (client.judge(project, (0, 9), ensemble=name) for name in ("tiny", "live"))
    assert {"tiny": first.ensemble, "live": other.ensemble} == running.ensembles
    assert client.judge(project, (0, 9)).table.equals(first.table)
    assert first.d1.tolist() != other.d1.tolist()
    with pytest.raises(InputError, match="no ensemble 'absent'"):
        client.judge(project, (0, 9), ensemble="absent")


@pytest.mark.ray
def test_refusals_arrive_as_the_service_words_them(client: Client, running: Running) -> None:
    with pytest.raises(InputError, match="none of the folders that this service may read"):
        client.judge("/etc/passwd")
    with (
        Client(running.url, "wrong") as stranger,
        pytest.raises(InputError, match="needs its bearer token"),
    ):
        stranger.judge("/etc/passwd")


@pytest.mark.ray
def test_it_is_healthy_and_named_for_the_dashboard(client: Client, running: Running) -> None:
    assert client.healthy()
    applications = ray_serve.status().applications
    assert list(applications) == ["cryoray"]
    assert set(applications["cryoray"].deployments) == {
        "ingress", "supervisor", "preparer", "judge-tiny", "judge-live", "shadow",
    }  # fmt: skip


@pytest.mark.ray
def test_a_promoted_ensemble_takes_over_and_no_request_is_lost(
    client: Client, project: Path, registry_root: Path
) -> None:
    before = client.judge(project, ensemble="live")
    new = save_ensemble(registry_root.parent / "new", seed=11)
    answers: list[Verdicts] = []
    enough = threading.Event()

    def keep_asking() -> None:
        while not enough.is_set():
            answers.append(client.judge(project, ensemble="live"))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking) for _ in range(4)]
        promote(new.path, registry_root, "live")
        until(lambda: sum(one.ensemble == new.digest for one in answers) >= 8, asking)
        enough.set()
        for one in asking:
            one.result()  # raises what a request did
    assert {one.ensemble for one in answers} == {before.ensemble, new.digest}
    after = client.judge(project, ensemble="live")
    assert after.ensemble == new.digest
    assert after.score.tolist() != before.score.tolist()
    for answer in answers:
        alike = before if answer.ensemble == before.ensemble else after
        assert answer.score.tolist() == pytest.approx(alike.score.tolist(), abs=1e-4)


@pytest.mark.ray
def test_a_damaged_promotion_is_tried_elsewhere_and_rolled_back(
    client: Client, project: Path, registry_root: Path
) -> None:
    before = client.judge(project, (0, 9), ensemble="live").ensemble
    bad = install(save_ensemble(registry_root.parent / "bad", seed=13).path, registry_root, "live")
    (registry_root / "live" / bad / "d2.safetensors").write_bytes(b"")
    (registry_root / "live" / "active").write_text(bad)
    until(lambda: active(registry_root, "live") == before)
    assert client.judge(project, (0, 9), ensemble="live").ensemble == before
    last = until(
        lambda: [one for one in client.ensembles().events if one.name == "ensemble.rolled-back"]
    )[-1]
    assert (last.data["digest"], last.data["instead_of"]) == (before, bad)
    assert "d2 are missing or damaged" in last.data["reason"]


@pytest.mark.ray
def test_the_shadow_agrees_with_itself(client: Client, project: Path) -> None:
    def judged_by_both() -> int:
        return sum(one.images for one in client.shadow().agreements if one.ensemble == "tiny")

    before = judged_by_both()
    client.judge(project, (0, 60), ensemble="tiny")
    until(lambda: judged_by_both() >= before + 60)
    (mine,) = [one for one in client.shadow().agreements if one.ensemble == "tiny"]
    assert mine.agreement == 1
    assert client.shadow().failed == 0
    assert "cryoray_shadow_images_total" in client.metrics()


def replicas(deployment: str) -> list[str]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [one["name"] for one in actors if f"#{deployment}#" in one["name"]]


def kill(deployment: str) -> str:
    """The name of one replica, which is no more."""
    name = replicas(deployment)[0]
    ray.kill(ray.get_actor(name, "serve"))
    return name


@pytest.mark.ray
@pytest.mark.parametrize("deployment", ["judge-tiny", "preparer"])
def test_a_lost_replica_shows_in_health_and_costs_no_answer(
    client: Client, project: Path, deployment: str
) -> None:
    whole = client.judge(project, ensemble="tiny")
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(client.judge, project, ensemble="tiny") for _ in range(4)]
        kill(deployment)
        until(lambda: not client.healthy(), seconds=5)
        asked.append(pool.submit(client.judge, project, ensemble="tiny"))
        for one in asked:
            assert one.result().verdict.tolist() == whole.verdict.tolist()
    until(client.healthy)
    stages = client.metrics()
    for stage in ("plan", "wait", "prepare", "judge", "answer"):
        assert f'cryoray_stage_seconds_count{{stage="{stage}"}}' in stages
    assert "cryoray_batch_fill_count" in stages


@pytest.mark.ray
def test_a_restarted_ingress_answers_with_what_is_active(
    client: Client, project: Path, registry_root: Path, running: Running
) -> None:
    new = save_ensemble(registry_root.parent / "newer", seed=17)
    promote(new.path, registry_root, "live")
    until(lambda: client.judge(project, (0, 3), ensemble="live").ensemble == new.digest)
    lost = kill("ingress")
    # The other one answers meanwhile: what was under way at the one that was lost is asked once more.
    for _ in range(20):
        assert client.judge(project, (0, 3), ensemble="live").ensemble == new.digest
    until(lambda: lost not in replicas("ingress") and len(replicas("ingress")) > 1)
    until(client.healthy)
    assert client.judge(project, (0, 3), ensemble="live").ensemble == new.digest
    assert new.digest != running.ensembles["live"]


@pytest.mark.ray
def test_a_lost_ingress_costs_no_answer_and_no_count(client: Client, project: Path) -> None:
    def counted() -> float:
        lines = client.metrics().splitlines()
        start = 'cryoray_images_total{ensemble="tiny"'
        return sum(float(one.rpartition(" ")[2]) for one in lines if one.startswith(start))

    until(lambda: len(replicas("ingress")) > 1)
    before = counted()
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.judge, project, (0, 50), ensemble="tiny") for _ in range(12)]
        kill("ingress")
        for one in asked:
            assert len(one.result()) == 50
    # Every ingress counts for all, those that are gone included, as far as they had reported.
    until(lambda: counted() > before)
    until(lambda: len(replicas("ingress")) > 1)


@pytest.mark.ray
def test_a_taken_port_is_refused_before_anything_starts(
    running: Running, tiny_ensemble: Path
) -> None:
    port = int(running.url.rpartition(":")[2])
    settings = Settings(serve=ServeSettings(ensembles=(str(tiny_ensemble),), port=port))
    with pytest.raises(
        SettingsError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"
    ):
        start(settings)


def test_serve_validates_what_build_is_given() -> None:
    # With postponed annotations it would hand over a dict, unvalidated.
    assert build.__annotations__["args"] is Arguments


def test_where_none_is_named_the_default_of_each_kind_is_served(
    tiny_ensemble: Path, class_ensemble: Path, tmp_path: Path
) -> None:
    promote(tiny_ensemble, tmp_path, "particle")
    promote(class_ensemble, tmp_path, "class2d")
    found = find_ensembles((), tmp_path)
    assert {name: one.kind for name, one in found.items()} == {
        k: k for k in ("particle", "class2d")
    }
    assert all(one.follows(tmp_path) for one in found.values())
    (named,) = find_ensembles((str(tiny_ensemble),), tmp_path).values()
    assert not named.follows(tmp_path)


def test_the_names_of_ensembles_differ(tiny_ensemble: Path, tmp_path: Path) -> None:
    twin = save_ensemble(tmp_path / "tiny").path
    with pytest.raises(SettingsError, match="two ensembles are named 'tiny'"):
        find_ensembles((str(tiny_ensemble), str(twin)), tmp_path)


@pytest.mark.ray
def test_threads_of_one_process_say_the_same_to_the_last_bit(
    client: Client, project: Path, tiny_ensemble: Path, registry_root: Path
) -> None:
    serving = ServeSettings(
        ensembles=(str(tiny_ensemble),),
        roots=(project.parent,),
        port=0,
        token="a-token-for-tests",
        batch=BATCH,
    )
    stack = project.parent / "Extract/job001/mic_2.mrcs"
    with (
        local.start(Settings(registry=registry_root, serve=serving)) as here,
        here.client() as threads,
    ):
        for source in (project, stack):
            assert threads.judge(source).table.equals(client.judge(source).table)
