"""The service on Ray Serve, and that it says what `classify` says."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray import serve as ray_serve

from cryoray.errors import InputError, SettingsError
from cryoray.inference import classify
from cryoray.protocol.client import Client
from cryoray.serving import Running, start
from cryoray.serving.app import Arguments, build, find_ensembles
from cryoray.settings import ClassifySettings, RuntimeSettings, ServeSettings, Settings
from tests.examples import save_ensemble

#: Smaller than a stack, so that requests are cut, and larger than the smallest request.
BATCH = 32


@pytest.fixture(scope="module")
def running(
    ray_cluster: RuntimeSettings,
    project: Path,
    tiny_ensemble: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    other = save_ensemble(tmp_path_factory.mktemp("ensembles") / "other", seed=7).path
    serving = ServeSettings(
        ensembles=(str(tiny_ensemble), str(other)),
        roots=(project.parent,),
        port=0,
        token="a-token",
        batch=BATCH,
    )
    with start(Settings(serve=serving)) as running:
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

    def ask(size: int) -> None:
        parts = [(first, min(first + size, n)) for first in range(0, n, size)]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda rows: client.judge(project, rows), parts))
        said = [one for answer in answers for one in answer.verdicts]
        assert [one.row for one in said] == list(range(n))
        assert [one.image for one in said] == table["image"].to_pylist()
        assert [one.verdict for one in said] == table["verdict"].to_pylist()
        assert [one.d3 is None for one in said] == table["d3"].is_null().to_pylist()
        scores = np.array([one.score for one in said])
        np.testing.assert_allclose(scores, table["score"].to_numpy(), atol=1e-4)

    for size in (n, 50, 7):
        ask(size)


@pytest.mark.ray
def test_a_stack_alone_is_judged_with_the_metadata_beside_it(client: Client, project: Path) -> None:
    stack = project.parent / "Extract/job001/mic_2.mrcs"
    by_stack = {one.image: one for one in client.judge(stack).verdicts}
    by_star = {one.image: one for one in client.judge(project).verdicts}
    assert len(by_stack) == 35
    for image, one in by_stack.items():
        assert one.score == pytest.approx(by_star[image].score, abs=1e-4)
    uploaded = client.judge_upload(stack).verdicts
    assert len(uploaded) == 35
    # Pixels alone are another matter: the metadata count.
    differences = [
        abs(with_metadata.score - without.score)
        for with_metadata, without in zip(by_stack.values(), uploaded, strict=True)
    ]
    assert max(differences) > 1e-3


@pytest.mark.ray
def test_each_ensemble_answers_by_its_name(client: Client, running: Running, project: Path) -> None:
    first, other = (client.judge(project, (0, 9), ensemble=name) for name in ("tiny", "other"))
    assert {"tiny": first.ensemble, "other": other.ensemble} == running.ensembles
    assert client.judge(project, (0, 9)) == first
    assert [one.d1 for one in first.verdicts] != [one.d1 for one in other.verdicts]
    with pytest.raises(InputError, match="no ensemble 'absent'"):
        client.judge(project, (0, 9), ensemble="absent")


@pytest.mark.ray
def test_refusals_arrive_as_the_service_words_them(client: Client, running: Running) -> None:
    with pytest.raises(InputError, match="none of the folders that this service may read"):
        client.judge("/etc/passwd")
    with (
        Client(running.url, "wrong") as stranger,
        pytest.raises(InputError, match="bearer token is needed"),
    ):
        stranger.judge("/etc/passwd")


@pytest.mark.ray
def test_it_is_healthy_and_named_for_the_dashboard(client: Client, running: Running) -> None:
    assert client.healthy()
    applications = ray_serve.status().applications
    assert list(applications) == ["cryoray"]
    assert set(applications["cryoray"].deployments) == {
        "ingress", "preparer", "judge-tiny", "judge-other",
    }  # fmt: skip


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


def test_ensembles_are_needed_and_their_names_differ(tiny_ensemble: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="give --ensemble"):
        find_ensembles(Arguments())
    twin = save_ensemble(tmp_path / "tiny").path
    with pytest.raises(SettingsError, match="two ensembles are named 'tiny'"):
        find_ensembles(Arguments(ensembles=(str(tiny_ensemble), str(twin))))
