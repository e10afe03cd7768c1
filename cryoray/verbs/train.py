"""Ray Train runs the fits of a round side by side; Ray Data scores what each fold left out."""

from __future__ import annotations

import contextvars
import hashlib
import io
import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import ray.train
import torch
from ray.data import ActorPoolStrategy
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer, get_device
from safetensors.torch import load_file
from torch import nn

from cryoray.boosting.filtering import folds_of_groups
from cryoray.boosting.operating_point import ask_third
from cryoray.boosting.voting import score
from cryoray.engine import runtime
from cryoray.engine.datasource import PreparedDatasource
from cryoray.errors import InputError, InternalError, not_ours
from cryoray.formats.files import naming, replacing
from cryoray.models.card import card
from cryoray.models.ensemble import HELD_OUT, Calibration, Ensemble, Manifest, save_weights
from cryoray.models.fit import Epoch, Fit, FitTask, Lane
from cryoray.models.networks import DEFAULT_MEMBERS, Network, logits
from cryoray.models.rounds import Boosted, HeldOut, LocalFits, boost, record
from cryoray.preparation.examples import Level, SetExamples, gather
from cryoray.records import Event, OnEvent, OnProgress, Progress, ignore
from cryoray.settings import FitSettings, Settings, TrainSettings
from cryoray.verbs.train_reasons import train_reasons

#: Losing a worker or a node costs the epoch in which it happened; this often, then the run gives up.
_FAILURES = 8
#: Says in the folder of a training, and later in that of its ensemble, which training it is of.
_RUN = "run.json"
#: So many images this process scores while a pool of Ray Data would still be starting.
_FEW = 8192


def train(
    sets: Sequence[Path],
    out: Path,
    settings: Settings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> Path:
    """Train d1, d2 and d3 on prepared sets and write the ensemble.

    Where labels of the sets say why images were discarded, it learns to name reasons, too.

    A run that was killed goes on where it stopped when it is called again with the same sets, settings
    and ``out``: finished rounds are not redone, a round goes on after its last epochs, and what is
    finished stays as it is. It works in ``OUT.partial`` and renames that in the end.

    Args:
        sets: folders of prepared sets.
        out: folder of the ensemble; must not exist, unless it is of this very training.
        settings: ``train`` and ``runtime`` are used.
        on_progress: told after every epoch of every fit.
        on_event: told what each round found.

    Returns:
        ``out``, absolute.

    Raises:
        InputError: sets, labels or settings that cannot be trained on, or ``out`` is something else.
        OSError: a disk is full.
    """
    out = Path(out).absolute()
    sets = [Path(path).absolute() for path in sets]
    examples, level = gather(sets, settings.train)
    identity = _identity(examples, settings)
    if _is_of(out, identity):
        # Whoever made it may have been killed before that.
        shutil.rmtree(out / "rounds", ignore_errors=True)
        return out
    if out.exists():
        raise InputError("exists already", file=out, remedy="give --out another name, or remove it")
    run = _open_run(out, identity)
    groups = examples.groups(level)
    fold_of = folds_of_groups(groups, settings.train.folds, settings.train.seed)
    runtime.connect(settings.runtime)
    fits = _RayFits(examples, settings, run, len(np.unique(fold_of)) + 1, on_progress)
    boosted = boost(
        examples,
        {"project": examples.groups("project"), "micrograph": examples.groups("micrograph")},
        fold_of,
        settings.train,
        fit_all=fits,
        held_out=_held_out(examples, settings),
        store=run / "rounds",
        on_event=on_event,
    )
    ensemble = write_ensemble(boosted, fits.curves(), examples, level, settings, run)
    if settings.train.reasons:
        train_reasons(sets, run, settings.train, on_progress=on_progress, on_event=on_event)
        ensemble = Ensemble.load(run)
    run.rename(out)
    shutil.rmtree(out / "rounds")
    on_event(
        Event(
            "train.done",
            {
                "ensemble": str(out),
                "digest": ensemble.digest,
                "threshold": ensemble.threshold,
                "operating_point": ensemble.manifest.operating_point,
                "bound": boosted.bound,
                "examples": len(examples),
            },
        )
    )
    return out


def _identity(examples: SetExamples, settings: Settings) -> str:
    """The same for the same training."""
    meant = {
        "sets": [[str(s.path), s.digest] for s in examples.sets],
        # How many workers there are changes when things happen, not what comes out; reasons come last.
        "train": settings.train.model_dump(mode="json", exclude={"workers", "gpu", "reasons"}),
        "members": [m.model_dump(mode="json") for m in DEFAULT_MEMBERS],
    }
    return hashlib.sha256(json.dumps(meant, sort_keys=True).encode()).hexdigest()


def _is_of(folder: Path, identity: str) -> bool:
    """Whether a folder is of this very training."""
    note = folder / _RUN
    return note.is_file() and json.loads(note.read_text(encoding="utf-8")) == identity


def _open_run(out: Path, identity: str) -> Path:
    """The working folder: an unfinished run of the very same training, or a new one."""
    run = out.with_name(out.name + ".partial")
    if _is_of(run, identity):
        return run
    if run.exists():
        shutil.rmtree(run)
    with replacing(run / _RUN) as temporary:
        temporary.write_text(json.dumps(identity), encoding="utf-8")
    return run


def write_ensemble(
    boosted: Boosted,
    curves: Sequence[Epoch],
    examples: SetExamples,
    level: Level,
    settings: Settings,
    folder: Path,
) -> Ensemble:
    """Write the files of an ensemble that was boosted on these examples into ``folder``, which exists."""
    groups = tuple(sorted(set(examples.groups(level))))
    first, *others = examples.sets
    same_diameter = all(s.settings.diameter == first.settings.diameter for s in others)
    preparation = first.settings.model_copy(
        update={"features": examples.names, "contrast": "auto"}
        | ({} if same_diameter else {"diameter": None})
    )
    c1, c2, c3 = (Calibration(slope=c.slope, offset=c.offset) for c in boosted.calibration)
    d1, d2, d3 = (network.config for network in boosted.networks)
    manifest = Manifest(
        kind=first.kind,
        members=(d1, d2, d3),
        features=examples.names,
        preparation=preparation,
        calibration=(c1, c2, c3),
        threshold=boosted.point.threshold,
        review=boosted.review,
        operating_point=boosted.point.as_json(),
        prevalence=float(np.mean(examples.labels == 1)),
        split_by=level,
        training_groups=groups,
        # Cross-fitting: every group calibrates the networks that were not trained on it.
        calibration_groups=groups,
    )
    with replacing(folder / "training.json") as temporary:
        temporary.write_text(record(boosted, curves, examples.column("image")), encoding="utf-8")
    _write_held_out(boosted, examples, folder / HELD_OUT)
    text = card(manifest, boosted, settings.train, [(s.path.name, s.digest) for s in examples.sets])
    return Ensemble(manifest, boosted.networks).save(folder, text)


def _write_held_out(boosted: Boosted, examples: SetExamples, file: Path) -> None:
    """What networks that had not seen an image's group said of it, for whoever wants to look closer."""
    d1, d2, d3 = boosted.probabilities.T
    third = ask_third(d1, d2, d3, boosted.point.threshold)
    columns = {name: examples.column(name) for name in ("image", "project", "micrograph")}
    table = pa.table(
        columns
        | {
            "keep": examples.labels == 1,
            "d1": d1,
            "d2": d2,
            "d3": pa.array(third, from_pandas=True),
        }
        | {"score": score(d1, d2, third), "suspected": boosted.suspects}
    )
    with replacing(file) as temporary:
        pq.write_table(table, temporary)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
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


class _RayFits:
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
        job = _Job(
            tasks=tuple(tasks),
            sets=tuple(s.path for s in self.examples.sets),
            rows=tuple(self.examples.rows),
            features=self.examples.names,
            settings=self.settings.train.fit,
            folder=folder,
        )
        if not all(job.weights(task).is_file() for task in tasks):
            with self._watching(member):
                self._fit(job, member)
        networks = []
        for task in tasks:
            network = Network(task.network, len(self.examples.names))
            network.load_state_dict(load_file(job.weights(task)))
            networks.append(network)
        return networks

    def _fit(self, job: _Job, member: str) -> None:
        workers, gpu = _workers(self.settings.train), self.settings.train.gpu
        cpus = _cpus_per_worker(workers, gpu)
        trainer = TorchTrainer(
            _work,
            train_loop_config={"job": ray.put(job)},
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
                storage_path=str(job.folder),
                failure_config=FailureConfig(max_failures=_FAILURES),
                callbacks=[_NotAgain()],
            ),
        )
        try:
            trainer.fit()
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
            told = -1
            while True:
                last = stop.wait(0.5)
                epochs = self.curves()
                if len(epochs) != told:
                    told = len(epochs)
                    here = [e for e in epochs if e.task.startswith(member)]
                    note = member if not here else f"{member}: loss {here[-1].loss:.3f}"
                    self.on_progress(Progress("train", told, self.epochs, "epochs", note))
                if last:
                    return

        thread = threading.Thread(target=contextvars.copy_context().run, args=(watch,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


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
    job: _Job = ray.get(config["job"])
    context = ray.train.get_context()
    # One thread: networks this small gain little from a second, which costs ten times the time as soon
    # as anything else wants its core, and sums in another order would be other weights.
    torch.set_num_threads(1)
    rank, world = context.get_world_rank(), context.get_world_size()
    lanes = min(world, len(job.tasks))
    number = rank % lanes
    lane, group = _lane(rank, world, lanes)
    examples = SetExamples(job.sets, job.rows, job.features)
    for task in job.tasks[number::lanes]:
        done, state = _told(job.kept(task) if lane.rank == 0 else None, number, group)
        if done:
            continue
        fit = Fit(task, examples, job.settings, device=get_device(), lane=lane)
        if state is not None:
            fit.load_state_dict(state)
        while not fit.done:
            point = fit.run_epoch()
            if lane.rank == 0:
                _append(job.folder / f"curve-{number}.jsonl", point)
                job.keep(task, fit)
        if lane.rank == 0:
            job.finish(task, fit)


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


def _told(what: Any, first: int, group: Any) -> Any:
    """What the first worker of a lane has: other nodes may not see at once what it sees on a shared disk."""
    if group is None:
        return what
    told = [what]
    torch.distributed.broadcast_object_list(told, src=first, group=group, device=get_device())
    return told[0]


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


def _held_out(examples: SetExamples, settings: Settings) -> HeldOut:
    """Who scores held-out images: few of them are judged here before a pool of Ray Data has started."""
    if len(examples) <= _FEW and not settings.train.gpu:
        return LocalFits(examples, settings.train.fit).held_out
    return _RayHeldOut(examples, settings)


class _RayHeldOut:
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
