"""A session on the whole service: replicas are lost, the page answers, every row is judged once."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
import ray

from cryoray.serving.app import start
from cryoray.session.watcher import Watcher
from cryoray.settings import RuntimeSettings, ServeSettings, Settings, WatchSettings
from tests import examples

STACKS, IMAGES = 6, 10


@pytest.mark.slow  # Ray takes its time to replace what was lost
@pytest.mark.ray
def test_replicas_that_die_cost_a_session_nothing(
    ray_cluster: RuntimeSettings, tiny_ensemble: Path, tmp_path: Path
) -> None:
    for number in range(STACKS):
        examples.write_stack(
            tmp_path / f"mic_{number}.mrcs", examples.particles(IMAGES, seed=number)
        )
    serving = ServeSettings(
        ensembles=(str(tiny_ensemble),),
        roots=(tmp_path,),
        port=0,
        token="a-token-for-tests",
        ledger=str(tmp_path / "cryoray/ledger.sqlite"),
    )
    killed: list[str] = []

    def kill(happened: object) -> None:
        """All of them, after the third stack."""
        if getattr(happened, "name", "") != "micrograph.judged":
            return
        seen.append(1)
        if len(seen) == 3:
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if any(word in actor["name"] for word in ("#judge-tiny#", "#preparer#")):
                    handle = ray.get_actor(actor["name"], namespace=actor["namespace"])
                    ray.kill(handle, no_restart=True)
                    killed.append(actor["name"])

    seen: list[int] = []
    with start(Settings(serve=serving)) as running:
        settings = WatchSettings(poll=0.1, settle=0.1, max_concurrent=1)
        watcher = Watcher(tmp_path, "s", settings, running.client(), on_event=kill)
        watcher.run(threading.Event(), once=True)
        row_counts = watcher.row_counts()
        rows = watcher.ledger.stacks("s", "judged")
        watcher.close()
        assert httpx.get(f"{running.url}/login").status_code == 200
        token = watcher.token_file.read_text().strip()
        said = httpx.get(
            f"{running.url}/v1/sessions/s", headers={"Authorization": f"Bearer {token}"}
        ).json()
    # However many there were: the busier the machine, the more.
    assert {name.split("#")[1] for name in killed} == {"judge-tiny", "preparer"}
    assert (row_counts["stacks"], row_counts["rows"]) == (STACKS, STACKS * IMAGES)
    assert said["stacks"] == {"particle/judged": STACKS}
    images = Counter(
        image
        for row in rows
        for image in pq.read_table(watcher.context.place(Path(row.path)) / "verdicts.parquet")[
            "image"
        ].to_pylist()
    )
    assert len(images) == STACKS * IMAGES
    assert set(images.values()) == {1}
