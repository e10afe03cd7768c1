"""Ray Train fits the networks of a round in parallel; Ray Data scores what each fold left out."""

from __future__ import annotations

import contextvars
import io
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import torch
from ray.data import ActorPoolStrategy
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device
from safetensors.torch import load_file
from torch import nn

from cryoray.engine import runtime
from cryoray.engine.datasource import PreparedDatasource
from cryoray.errors import InternalError, not_ours
from cryoray.formats.files import naming, replacing
from cryoray.models.ensemble import save_weights
from cryoray.models.fit import Epoch, Fit, FitTask, Lane
from cryoray.models.networks import Network, logits
from cryoray.models.rounds import HeldOut, LocalFits
from cryoray.preparation.examples import SetExamples
from cryoray.records import OnProgress, Progress
from cryoray.settings import FitSettings, Settings, TrainSettings

#: Losing a worker or a node costs the epoch in which it happened; this often, then the run gives up.
_FAILURES = 8
#: So many images this process scores while a pool of Ray Data would still be starting.
_FEW = 8192


@dataclass(frozen=True, slots=True, eq=False)
class _Round:
    """What every worker of a round needs to know; travels once, through the object store."""

    tasks: tuple[FitTask, ...]
    sets: tuple[Path, ...]
    rows: tuple[np.ndarray, ...]
    features: tuple[str, ...]
    settings: FitSettings
    folder: Path

    def weights(self, task: FitTask) -> Path:
        """Where the weights of a task are when it is done."""
        return self.folder / f"{task.name}.safetensors"

    def _state(self, task: FitTask) -> Path:
        return self.folder / f"{task.name}.pt"

    def keep(self, task: FitTask, fit: Fit) -> None:
        """Keep what is needed to go on with a task after this epoch."""
        # Not straight into the file: torch says of a full disk what no `except OSError` hears.
        content = io.BytesIO()
        torch.save(fit.state_dict(), content)
        with replacing(self._state(task)) as temporary:
            temporary.write_bytes(content.getbuffer())

    def finish(self, task: FitTask, fit: Fit) -> None:
        """Keep the weights, and nothing else."""
        save_weights(self.weights(task), fit.result().state_dict())
        self._state(task).unlink(missing_ok=True)

    def kept(self, task: FitTask) -> tuple[bool, dict[str, Any] | None]:
        """Whether a task is done, and where it is not, what was kept after its last epoch, if any."""
        if self.weights(task).is_file():
            return True, None
        file = self._state(task)
        if not file.is_file():
            return False, None
        return False, torch.load(file, weights_only=True, map_location="cpu")


class RayFits:
    """Fits the networks of a round with Ray Train, in lanes side by side.

    With W workers and T tasks there are min(W, T) lanes, each with its share of the workers and every
    min(W, T)-th of the tasks. A lane of several workers trains by distributed data parallel at the same
    global batch; so folds run side by side before they share a network, which wastes no worker.

    Each task keeps its own state after each epoch, by rename: Ray Train's list of checkpoints is written
    in place, and one that was cut short, by a full disk or by the end of its writer, is the end of a run.
    """

    def __init__(
        self,
        examples: SetExamples,
        settings: Settings,
        run: Path,
        tasks_per_round: int,
        on_progress: OnProgress,
    ) -> None:
        self.examples, self.settings, self.run = examples, settings, run
        self.on_progress = on_progress
        self.epochs = 3 * tasks_per_round * settings.train.fit.epochs

    def __call__(self, tasks: Sequence[FitTask]) -> list[Network]:
        """See `models.rounds.FitAll`."""
        member = tasks[0].name.partition("-")[0]
        folder = self.run / "rounds" / member
        folder.mkdir(parents=True, exist_ok=True)
        work = _Round(
            tasks=tuple(tasks),
            sets=tuple(s.path for s in self.examples.sets),
            rows=tuple(self.examples.rows),
            features=self.examples.names,
            settings=self.settings.train.fit,
            folder=folder,
        )
        if not all(work.weights(task).is_file() for task in tasks):
            with self._watching(member):
                self._fit(work, member)
        networks = []
        for task in tasks:
            network = Network(task.network, len(self.examples.names))
            network.load_state_dict(load_file(work.weights(task)))
            networks.append(network)
        return networks

    def _fit(self, work: _Round, member: str) -> None:
        workers, gpu = _workers(self.settings.train), self.settings.train.gpu
        cpus = _cpus_per_worker(workers, gpu)
        trainer = TorchTrainer(
            _work,
            train_loop_config={"round": ray.put(work)},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=gpu,
                resources_per_worker={"CPU": cpus} | ({"GPU": 1} if gpu else {}),
                # Over the nodes: one that is lost takes one of the trainings with it, not all.
                placement_strategy="SPREAD",
            ),
            run_config=RunConfig(
                # Of the ensemble and the member: the dashboard lists all trainings of a cluster.
                name=f"train {self.run.name.removesuffix('.partial')} {member}",
                storage_path=str(work.folder),
                failure_config=FailureConfig(max_failures=_FAILURES),
                callbacks=[_NotAgain()],
            ),
        )
        try:
            _fitted(trainer)
        except ControllerError as error:
            if not_ours(error.controller_failure):
                raise error.controller_failure from error
            raise

    def curves(self) -> list[Epoch]:
        """Every epoch so far."""
        return _curves(self.run / "rounds")

    @contextmanager
    def _watching(self, member: str) -> Iterator[None]:
        """Tell of progress while Ray Train blocks: workers append to files that this thread reads."""
        stop = threading.Event()

        def watch() -> None:
            reported = -1
            while True:
                last = stop.wait(0.5)
                epochs = self.curves()
                if len(epochs) != reported:
                    reported = len(epochs)
                    here = [e for e in epochs if e.task.startswith(member)]
                    note = member if not here else f"{member}: loss {here[-1].loss:.3f}"
                    self.on_progress(Progress("train", reported, self.epochs, "epochs", note))
                if last:
                    return

        thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def _fitted(trainer: TorchTrainer) -> None:
    """Run a trainer in a thread: in the main one Ray Train takes Ctrl-C for itself, and a minute to obey."""
    done: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            done.set_result(None)
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=contextvars.copy_context().run, args=(fit,), daemon=True).start()
    done.result()


def _workers(settings: TrainSettings) -> int:
    """As asked for; else one per GPU, or on CPUs one per core, up to the number of fits in a round.

    Fits side by side on one thread each are faster than one after the other on many threads.
    """
    if settings.workers is not None:
        return settings.workers
    return min(runtime.processors(settings.gpu), settings.folds + 1)


def _cpus_per_worker(workers: int, gpu: bool) -> float:
    """A worker has one thread; less than a CPU is claimed where Ray Data and Serve would starve."""
    if gpu:
        return 1.0
    total = float(ray.cluster_resources().get("CPU", 1.0))
    return min(1.0, max(0.5, total / 2 / workers))


class _NotAgain(UserCallback):
    """Ends a training at once whose worker says what is wrong with a file or a disk.

    Ray Train tries again whatever happened. That helps where a worker or a node was lost.
    """

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """In the process that looks after the workers; what is raised there ends the training."""
        for error in worker_exceptions.values():
            if not_ours(error):
                raise error


def _work(config: dict[str, Any]) -> None:
    """What each Ray Train worker does: its lane's fits, one after the other."""
    work: _Round = ray.get(config["round"])
    context = ray.train.get_context()
    # One thread: networks this small gain little from a second, which costs ten times the time as soon
    # as anything else wants its core, and sums in another order would be other weights.
    torch.set_num_threads(1)
    rank, world = context.get_world_rank(), context.get_world_size()
    lanes = min(world, len(work.tasks))
    number = rank % lanes
    lane, group = _lane(rank, world, lanes)
    examples = SetExamples(work.sets, work.rows, work.features)
    for task in work.tasks[number::lanes]:
        done, state = _shared(work.kept(task) if lane.rank == 0 else None, number, group)
        if done:
            continue
        fit = Fit(task, examples, work.settings, device=get_device(), lane=lane)
        if state is not None:
            fit.load_state_dict(state)
        while not fit.done:
            point = fit.run_epoch()
            if lane.rank == 0:
                _append(work.folder / f"curve-{number}.jsonl", point)
                work.keep(task, fit)
        if lane.rank == 0:
            work.finish(task, fit)


def _lane(rank: int, world: int, lanes: int) -> tuple[Lane, Any]:
    """This worker's lane and its process group, None where it is alone in it.

    Every worker makes every process group, as torch.distributed wants it.
    """
    mine, mine_group = Lane(), None
    for number in range(lanes):
        ranks = list(range(number, world, lanes))
        group = torch.distributed.new_group(ranks) if len(ranks) > 1 else None
        if rank in ranks and group is not None:

            def wrap(network: nn.Module, group: Any = group) -> nn.Module:
                return nn.parallel.DistributedDataParallel(network, process_group=group)

            mine = Lane(rank=ranks.index(rank), size=len(ranks), wrap=wrap)
            mine_group = group
    return mine, mine_group


def _shared(what: Any, first: int, group: Any) -> Any:
    """What the first worker of a lane has: other nodes may not see at once what it sees on a shared disk."""
    if group is None:
        return what
    shared = [what]
    torch.distributed.broadcast_object_list(shared, src=first, group=group, device=get_device())
    return shared[0]


def _curves(rounds: Path) -> list[Epoch]:
    """Every epoch so far; where one was run again after a failure, the later run counts."""
    epochs = {}
    for file in sorted(rounds.glob("d*/curve-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # it was cut short, and its epoch was run again
                epoch = Epoch(**json.loads(line))
                epochs[epoch.task, epoch.epoch] = epoch
    return [epochs[key] for key in sorted(epochs)]


def _append(file: Path, epoch: Epoch) -> None:
    """Add a line of its own, also after one that a full disk cut short."""
    with naming(file), file.open("a", encoding="utf-8") as stream:
        stream.write("\n" + json.dumps(asdict(epoch)) + "\n")


def held_out(examples: SetExamples, settings: Settings) -> HeldOut:
    """Who scores held-out images: few of them are judged here before a pool of Ray Data has started."""
    if len(examples) <= _FEW and not settings.train.gpu:
        return LocalFits(examples, settings.train.fit).held_out
    return RayHeldOut(examples, settings)


class RayHeldOut:
    """Scores the whole, unsplit sets with Ray Data: every row by the network of the fold without it."""

    def __init__(self, examples: SetExamples, settings: Settings) -> None:
        self.examples, self.settings = examples, settings

    def __call__(self, networks: Sequence[Network], fold_of: np.ndarray) -> np.ndarray:
        """See `models.rounds.HeldOut`."""
        examples, settings = self.examples, self.settings.train
        source = PreparedDatasource(
            [(s.path, rows) for s, rows in zip(examples.sets, examples.rows, strict=True)],
            examples.names,
        )
        scored = ray.data.read_datasource(source, override_num_blocks=len(source)).map_batches(
            _Scorer,
            fn_constructor_args=(
                ray.put([(n.config, n.state_dict()) for n in networks]),
                ray.put(_places(examples)),
                ray.put(fold_of),
            ),
            batch_size=None,
            compute=ActorPoolStrategy(size=min(_workers(settings), len(source))),
            num_cpus=0.5,
            num_gpus=1 if settings.gpu else 0,
        )
        scored.set_name("score held-out")
        logit = np.full(len(fold_of), np.nan, np.float32)
        for batch in scored.iter_batches(batch_size=None, batch_format="numpy"):
            logit[batch["example"]] = batch["logit"]
        if np.isnan(logit).any():
            raise InternalError(f"{int(np.isnan(logit).sum())} examples were not scored")
        return logit


def _places(examples: SetExamples) -> list[np.ndarray]:
    """For each set, the example that each of its rows is: int64 [rows], -1 for rows not used."""
    places, start = [], 0
    for prepared, rows in zip(examples.sets, examples.rows, strict=True):
        places.append(np.full(prepared.n, -1, np.int64))
        places[-1][rows] = np.arange(start, start + len(rows))
        start += len(rows)
    return places


class _Scorer:
    """Holds the fold networks; gives each example's logit by the network of the fold without it."""

    def __init__(self, networks: Any, places: Any, fold_of: Any) -> None:
        self.places, self.fold_of = ray.get(places), ray.get(fold_of)
        device = "cuda" if ray.get_gpu_ids() else "cpu"
        self.networks = []
        for config, state in ray.get(networks):
            network = Network(config, len(state["feature_mean"]))
            network.load_state_dict(state)
            self.networks.append(network.to(device))

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        example = self.places[int(batch["set"][0])][batch["row"]]  # a block is of one set
        fold = self.fold_of[example]
        logit = np.empty(len(fold), np.float32)
        for number in np.unique(fold):
            mine = fold == number
            images = torch.tensor(batch["image"][mine])
            features = torch.tensor(batch["features"][mine])
            logit[mine] = logits(self.networks[number], images, features).numpy()
        return {"example": example, "logit": logit}
