"""Scenarios on several Ray nodes of this machine: ``python -m tests.faults.nodes SCENARIO FOLDER``.

Each runs in a process of its own, with a Ray of its own, and prints what came out as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: Before Ray is imported: a folder of its own, so that no other Ray of this machine is met.
TEMP = Path("/tmp") / f"cryoray-faults-{os.getpid()}"
_NODE = {"object_store_memory": 90 << 20, "include_dashboard": False}


@contextmanager
def cluster(workers: int, cpus: int) -> Iterator[Any]:
    """A head without processors and some workers; `.workers` are its nodes, `.lose()` takes one away."""
    (TEMP / "ray").mkdir(parents=True, exist_ok=True)
    os.environ["RAY_TMPDIR"] = str(TEMP)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, connect=False, head_node_args={**_NODE, "num_cpus": 0})
    nodes = [made.add_node(num_cpus=cpus, **_NODE) for _ in range(workers)]
    made.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = made.address

    def lose() -> None:
        made.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(made.add_node(num_cpus=cpus, **_NODE))

    made.lose = lose
    try:
        yield made
    finally:
        import ray

        ray.shutdown()
        made.shutdown()


def once(when: Callable[[], bool], do: Callable[[], None]) -> Callable[[Any], None]:
    """A callback that does something the first time that it is due, in a thread."""
    done = threading.Event()

    def call(_: Any) -> None:
        if when() and not done.is_set():
            done.set()
            threading.Thread(target=do).start()

    call.done = done  # type: ignore[attr-defined]
    return call


def ingest_settings(**more: Any) -> Any:
    """Small tasks, so that there are many."""
    from cryoray.settings import load

    return load(ingest={"preparation": {"box": 32}, "range_mib": 1, **more})


def ingestion(folder: Path) -> dict[str, Any]:
    """A node is lost in one ingestion, its driver is killed in another; both end as an undisturbed one."""
    from cryoray.ingest import ingest
    from cryoray.preparation.prepared import PreparedSet
    from tests.preparation.sources import particles, write_source

    source = folder / "source"
    write_source(source, [particles(400, 96, seed=i) for i in range(6)])
    os.environ.pop("RAY_ADDRESS", None)
    expected = PreparedSet.open(ingest([source], folder / "expected", ingest_settings())).digest

    with cluster(2, 1) as nodes:
        settings, seen = ingest_settings(alone_mib=0), [0]

        def progress(now: Any) -> None:
            seen[0] = now.done
            lose(now)

        lose = once(lambda: seen[0] >= 200, nodes.lose)
        lost = PreparedSet.open(ingest([source], folder / "lost", settings, on_progress=progress))
        import ray

        ray.shutdown()
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nodes", "driver", str(folder)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert driver.stdout is not None
        for line in driver.stdout:
            if line.startswith("done ") and int(line.split()[1]) >= 200:
                driver.send_signal(signal.SIGKILL)
                break
        driver.wait()
        visible = (folder / "set").exists()
        names: list[str] = []
        resumed = PreparedSet.open(
            ingest([source], folder / "set", settings, on_event=lambda e: names.append(e.name))
        )
    return {
        "expected": expected,
        "lost": lost.digest,
        "node": lose.done.is_set(),  # type: ignore[attr-defined]
        "books": len(lost) + lost.quarantine.num_rows,
        "killed": driver.returncode,
        "visible": visible,
        "resumed": "ingest.resumed" in names,
        "after": resumed.digest,
    }


def driver(folder: Path) -> dict[str, Any]:
    """An ingestion that says how far it is, slowly enough to be killed in the middle."""
    from cryoray.ingest import ingest

    def progress(now: Any) -> None:
        print(f"done {now.done}", flush=True)
        time.sleep(0.05)

    ingest([folder / "source"], folder / "set", ingest_settings(alone_mib=0), on_progress=progress)
    return {}


def training(folder: Path) -> dict[str, Any]:
    """A node of two is lost while a training runs on both."""
    from cryoray.models.ensemble import Ensemble
    from cryoray.settings import load
    from cryoray.training import train
    from tests.training.sets import write_labelled_set

    sets = [write_labelled_set(folder, f"p{i}", n=30, seed=i) for i in range(2)]
    fit = {"epochs": 2, "batch": 32, "learning_rate": 5e-3}
    settings = load(train={"fit": fit, "folds": 2, "workers": 2})
    with cluster(2, 2) as nodes:
        seen: list[int] = []

        def progress(now: Any) -> None:
            seen.append(now.done)
            lose(now)

        lose = once(lambda: seen[-1] >= 1, nodes.lose)
        out = train(sets, folder / "ensemble", settings, on_progress=progress)
    return {
        "node": lose.done.is_set(),  # type: ignore[attr-defined]
        "epochs": max(seen),
        "digest": Ensemble.load(out).digest,
        "left": [path.name for path in folder.iterdir() if path.name.endswith(".partial")],
    }


if __name__ == "__main__":
    scenario, where = sys.argv[1], Path(sys.argv[2])
    found = {"ingestion": ingestion, "driver": driver, "training": training}[scenario](where)
    print("FOUND " + json.dumps(found), flush=True)
