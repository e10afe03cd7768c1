"""Scenarios on several Ray nodes of this machine: ``python -m tests.faults.nodes SCENARIO FOLDER…``.

Each runs in a process of its own, with a Ray of its own, and prints what came out as JSON.
"""

from __future__ import annotations

import hashlib
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

import numpy as np
import pyarrow.parquet as pq

#: Before Ray is imported: a folder of its own, so that no other Ray of this machine is met.
TEMP = Path("/tmp") / f"cryoray-faults-{os.getpid()}"
_NODE = {"object_store_memory": 90 << 20, "include_dashboard": False}


@contextmanager
def cluster(workers: int, cpus: int) -> Iterator[Any]:
    """A head without processors and some workers; `.lose(n)` takes the n oldest for others."""
    (TEMP / "ray").mkdir(parents=True, exist_ok=True)
    os.environ["RAY_TMPDIR"] = str(TEMP)
    os.environ["RAY_AUTH_MODE"] = "disabled"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, connect=False, head_node_args={**_NODE, "num_cpus": 0})
    nodes = [made.add_node(num_cpus=cpus, **_NODE) for _ in range(workers)]
    made.wait_for_nodes()
    os.environ["RAY_ADDRESS"] = made.address

    def lose(count: int = 1) -> None:
        for _ in range(count):
            made.remove_node(nodes.pop(0), allow_graceful=False)
        nodes.extend(made.add_node(num_cpus=cpus, **_NODE) for _ in range(count))

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


def fates_of(verdicts: Any) -> list[tuple[str, str]]:
    """Image and verdict of each row that was judged."""
    return list(zip(verdicts.column("image"), verdicts.verdict, strict=True))


def ingest_settings(**more: Any) -> Any:
    """Small tasks, so that there are many."""
    from cryoray.settings import load

    return load(ingest={"preparation": {"box": 32}, "range_mib": 1, **more})


def ingestion(folder: Path) -> dict[str, Any]:
    """A node is lost in one ingestion, its driver is killed in another; both end as an undisturbed one."""
    from cryoray.preparation.prepared import PreparedSet
    from cryoray.verbs.ingest import ingest
    from tests.preparation.sources import particles, write_source

    source = folder / "source"
    write_source(source, [particles(400, 96, seed=i) for i in range(6)])
    os.environ.pop("RAY_ADDRESS", None)
    expected = PreparedSet.open(ingest([source], folder / "expected", ingest_settings())).digest

    with cluster(2, 1) as nodes:
        settings, seen = ingest_settings(local_max_mib=0), [0]

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
        "row_counts": len(lost) + lost.quarantine.num_rows,
        "killed": driver.returncode,
        "visible": visible,
        "resumed": "ingest.resumed" in names,
        "after": resumed.digest,
    }


def driver(folder: Path) -> dict[str, Any]:
    """An ingestion that says how far it is, slowly enough to be killed in the middle."""
    from cryoray.verbs.ingest import ingest

    def progress(now: Any) -> None:
        print(f"done {now.done}", flush=True)
        time.sleep(0.05)

    ingest(
        [folder / "source"], folder / "set", ingest_settings(local_max_mib=0), on_progress=progress
    )
    return {}


def training(folder: Path) -> dict[str, Any]:
    """A node of two is lost while a training runs on both."""
    from cryoray.models.ensemble import Ensemble
    from cryoray.settings import load
    from cryoray.verbs.train import train
    from tests.sets import write_labelled_set

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


def judging(folder: Path) -> dict[str, Any]:
    """All nodes are lost while images are judged: those that are read and the judges themselves."""
    from cryoray.settings import load
    from cryoray.verbs.classify import classify
    from tests.examples import save_ensemble

    source = _project(folder / "source", 500, 64)
    ensemble = save_ensemble(folder / "tiny").path
    chosen = {"ensemble": str(ensemble), "range_mib": 1, "local_max_mib": 0}
    settings = load(classify=chosen)
    with cluster(2, 2) as nodes:
        expected = classify(source, folder / "expected", settings)
        lost_at: list[int] = []

        def progress(now: Any) -> None:
            if now.done and not lost_at:
                lost_at.append(now.done)
                nodes.lose(2)

        lost = classify(source, folder / "lost", settings, on_progress=progress)
        return {
            "at": lost_at,
            "expected": said(expected),
            "lost": said(lost),
            "apart": apart(expected, lost),
        }


def service(folder: Path) -> dict[str, Any]:
    """Each node is lost while the service is asked; then it is deployed anew while it is asked."""
    from ray import serve as ray_serve

    from cryoray.errors import CryorayError
    from cryoray.protocol.client import Client
    from cryoray.serving.app import NAME, Arguments, build, start
    from cryoray.settings import load
    from tests.examples import save_ensemble, write_project

    project = write_project(folder / "project")
    ensemble = save_ensemble(folder / "tiny").path
    given = {
        "ensembles": (str(ensemble),),
        "roots": (folder,),
        "token": "a-token-for-tests",
        "judges": 2,
        "preparers": 2,
    }
    answers: list[tuple[float, Any]] = []
    errors: list[tuple[float, str]] = []
    enough = threading.Event()

    def keep_asking(url: str) -> None:
        with Client(url, "a-token-for-tests", timeout=60) as client:
            while not enough.is_set():
                asked = time.monotonic()
                try:
                    answers.append((asked, fates_of(client.judge(project))))
                except CryorayError as error:
                    errors.append((asked, str(error)))
                    time.sleep(0.2)

    def answered() -> float:
        """Seconds until as many as ask have been answered what they asked from now on."""
        began = time.monotonic()
        while sum(asked > began for asked, _ in answers) < 6:
            assert time.monotonic() - began < 120, errors[-3:]
            time.sleep(0.05)
        return time.monotonic() - began

    settings = load(serve={**given, "port": 0}, registry=folder / "registry")
    with cluster(2, 2) as nodes, start(settings) as running:
        asking = [threading.Thread(target=keep_asking, args=(running.url,)) for _ in range(3)]
        for one in asking:
            one.start()
        try:
            answered()
            before, away = len(errors), []
            for _ in range(2):
                nodes.lose()
                away.append(answered())
            began = time.monotonic()
            args = Arguments(**given, batch=16, registry=folder / "registry")
            ray_serve.run(build(args), name=NAME)
            answered()
        finally:
            enough.set()
            for one in asking:
                one.join()
    return {
        "before": before,
        "away": away,
        "lost": [why for asked, why in errors if asked < began],
        "update": [why for asked, why in errors if asked >= began],
        "answers": len(answers),
        "same": all(one == answers[0][1] for _, one in answers),
    }


def asking(folder: Path) -> dict[str, Any]:
    """The service of this machine is asked again and again, until there is a file ``enough``.

    Each answer is a line of ``answers``: what was asked when, and a digest of what came back.
    """
    from cryoray.errors import CryorayError
    from cryoray.protocol.client import Client

    errors: list[tuple[float, str]] = []
    with Client("http://127.0.0.1:8123", "a-token-for-tests", timeout=60) as client:
        while not (folder / "enough").exists():
            asked = time.time()
            try:
                said = fates_of(client.judge(folder / "project/particles.star"))
            except CryorayError as error:
                errors.append((asked, str(error)))
                time.sleep(0.2)
                continue
            content = "\n".join(f"{image} {verdict}" for image, verdict in said)
            with (folder / "answers").open("a") as file:
                file.write(f"{asked} {hashlib.sha256(content.encode()).hexdigest()}\n")
    return {"errors": errors}


def slowly(source: Path, out: Path) -> dict[str, Any]:
    """A judging that says how far it is, slowly enough to be met in the middle."""
    from cryoray.settings import load
    from cryoray.verbs.classify import classify

    def progress(now: Any) -> None:
        print(f"done {now.done}", flush=True)
        time.sleep(0.05)

    classify(source, out, load(classify={"local_max_mib": 0}), on_progress=progress)
    return {}


def _project(folder: Path, n: int, box: int) -> Path:
    """The STAR file of seven stacks of n images each."""
    from tests.preparation.sources import particles, write_source

    return write_source(folder, [particles(n, box, seed=i) for i in range(7)]).path


def said(verdicts: Path) -> dict[str, Any]:
    """What was said of which images, and the row counts."""
    table = pq.read_table(verdicts / "verdicts.parquet", columns=["image", "verdict"])
    content = hashlib.sha256()
    for column in table.columns:
        content.update("\n".join(column.to_pylist()).encode())
    return {
        "digest": content.hexdigest(),
        "judged": len(table),
        "images": len(set(table["image"].to_pylist())),
        "quarantined": pq.read_metadata(verdicts / "quarantine.parquet").num_rows,
    }


def apart(one: Path, other: Path) -> float:
    """The largest difference of scores."""
    scores = [pq.read_table(of / "verdicts.parquet")["score"].to_numpy() for of in (one, other)]
    return float(np.abs(scores[0] - scores[1]).max())


SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    one.__name__: one for one in (ingestion, driver, training, judging, slowly, service, asking)
}

if __name__ == "__main__":
    found = SCENARIOS[sys.argv[1]](*map(Path, sys.argv[2:]))
    print("FOUND " + json.dumps(found), flush=True)
