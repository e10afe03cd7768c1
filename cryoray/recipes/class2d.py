"""The ensemble of 2D classes: simulated jobs, RELION's own and two human selections, in one training.

There are few examples and the networks are small, so this process fits them itself, without Ray.
Cross-fitting judges every protein by networks that were not trained on it; what the card says of the human
selections comes from those, at a threshold that the protein had no part in.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoray.boosting import operating_point
from cryoray.boosting.filtering import folds_of_groups
from cryoray.boosting.operating_point import ask_third
from cryoray.boosting.voting import score
from cryoray.formats.files import replacing
from cryoray.formats.names import CARD, SET
from cryoray.metrics.accuracy import auroc, confusion
from cryoray.models.fit import Epoch, Examples
from cryoray.models.networks import NetworkConfig
from cryoray.models.rounds import Boosted, Levels, LocalFits, boost
from cryoray.preparation.examples import Level, SetExamples, gather
from cryoray.preparation.features import FEATURES
from cryoray.recipes.relion_jobs import PROGRAM, class2d_job, there_is_relion
from cryoray.records import Event, Progress
from cryoray.settings import PreparationSettings, Settings, load
from cryoray.simulation.classes import simulate_classes
from cryoray.terminal import Show
from cryoray.verbs.ingest import ingest
from cryoray.verbs.train import write_ensemble

#: Simulated proteins, and jobs of each: enough that their mean loss can be bounded. Since networks see how
#: classes stand to each other in their job, thirty teach as much as ten times as many did before.
PROJECTS, JOBS = 70, 5
#: Simulated collections that RELION itself classified, and how often a class of theirs counts beside one of a
#: simulated job, on average: good and bad ones as much together, since most of them are good, and the look of
#: RELION's classes must not tell that. A fifth of all.
RELION_JOBS, RELION_WEIGHT = 30, 8
#: Three small networks: a class average is far less noisy than a particle.
MEMBERS = (
    NetworkConfig(width=8, blocks=(1, 1), activation="silu"),
    NetworkConfig(width=8, blocks=(1, 1, 1), activation="gelu", stem=3),
    NetworkConfig(width=8, blocks=(1, 1), activation="relu", stem=7, dilation=2),
)
#: Features of a class that do not need to be compared with others to travel between jobs.
_ALONE = (
    *("protein_area", "protein_outline", "scattered_signal", "edge_signal"),
    *("relation", "central_structure"),
)
#: Not learned from: a class's share of the particles, by which what is lost is counted.
SHARE = "class_distribution"
#: Those that take the particles' file, which few classes come with.
_WITH_PARTICLES = ("particle_number", "weighted_resolution", "relative_resolution")
#: The human selections: the protein, and how the names of its stacks begin.
HUMAN = {"beta-galactosidase": "Bgal_", "TcdA1": "TcdA1_"}
#: What is no person's selection, as the card names it.
SIMULATED, RELION = "simulated proteins", "RELION's classes of simulated particles"
#: How often each class that a person judged counts beside a simulated one: a twentieth of all, together.
HUMAN_WEIGHT = 12
#: Of some 700 steps; with half as many, on 29 simulated proteins alone, both real ones were ranked as well.
_EPOCHS = 1


def features() -> tuple[str, ...]:
    """Names of what the networks are told of a class: its place among the others of its job."""
    compared = [f.name for f in FEATURES if f.kinds == ("class2d",) and f.within]
    left_out = tuple(f"{name}_" for name in _WITH_PARTICLES)
    return (*_ALONE, *(name for name in compared if not name.startswith(left_out)))


def settings_of(epochs: int = _EPOCHS, seed: int = 0) -> Settings:
    """How classes are prepared and networks fitted, and the threshold chosen."""
    return load(
        ingest={
            "kind": "class2d",
            "preparation": {"features": (*features(), SHARE), "geometry": "job"},
        },
        train={
            "features": features(),
            "seed": seed,
            "folds": 2,
            "fit": {
                "epochs": epochs,
                "batch": 32,
                "metadata_dropout": 0.2,
                "augment": {"smooth": 0.0},  # a class has no background that could be the unit
            },
        },
    )


def prepared_sets(
    work: Path,
    projects: int,
    relion: int,
    real: Path | None,
    show: Show,
    settings: Settings | None = None,
    folder: str = "sets",
) -> dict[str, list[Path]]:
    """The prepared sets of so many simulated proteins, of so many jobs of RELION, and of human selections.

    Args:
        work: where the jobs are made and lie.
        projects: simulated proteins.
        relion: jobs of RELION.
        real: folder with ``class-averages-human``; None for none.
        show: what tells of progress.
        settings: of `ingest`, how they are prepared; None for `settings_of`.
        folder: in ``work``, of the sets that are prepared like this.

    Returns:
        paths of the sets `SIMULATED`, of those of `RELION`, and of each protein of `HUMAN` in ``real``.
    """
    how = (settings or settings_of()).ingest.preparation
    sets: dict[str, list[Path]] = {SIMULATED: [], RELION: []}
    # Not forked: torch's threads do not survive that.
    with ProcessPoolExecutor(
        os.cpu_count(), get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        for kind, make, number in (
            (SIMULATED, partial(_simulated, work, folder, how, JOBS), projects),
            (RELION, partial(_classified, work, folder, how), relion),
        ):
            for made in pool.map(make, range(number)):
                sets[kind].append(made)
                show.progress(Progress("simulate", len(sets[kind]), number, "proteins", kind))
    human = real / "class-averages-human" if real else None
    if human is not None and human.is_dir():
        for protein, begins in HUMAN.items():
            sources = sorted(human.glob(f"{begins}*_model.star"))
            sets[protein] = [prepared(sources, work / folder / protein, how)]
    return sets


def _simulated(work: Path, folder: str, how: PreparationSettings, jobs: int, number: int) -> Path:
    """The prepared set of one simulated protein."""
    name = f"simulated-{number + 1:03d}"
    source = simulate_classes(work / "simulated" / name, number, jobs)
    return prepared([source], work / folder / name, how)


def _classified(work: Path, folder: str, how: PreparationSettings, number: int) -> Path:
    """The prepared set of a job of RELION's."""
    name = f"relion-{number + 1:03d}"
    job = class2d_job(work / "relion" / name, number)
    # One by one: a folder of RELION's is opened at its last iteration alone.
    return prepared(sorted(job.glob("run_it*_model.star")), work / folder / name, how)


def prepared(sources: Sequence[Path], out: Path, how: PreparationSettings) -> Path:
    """A set that is its own group, named as its folder."""
    if not (out / SET).is_file():
        settings = settings_of()
        chosen = settings.ingest.model_copy(update={"group": out.name, "preparation": how})
        ingest(sources, out, settings.model_copy(update={"ingest": chosen}))
    return out


def learned_from(
    sets: Mapping[str, Sequence[Path]], settings: Settings, without: str | None = None
) -> tuple[SetExamples, Level, np.ndarray]:
    """Of `prepared_sets`, what networks are trained on, perhaps without one protein.

    Returns:
        the examples, the level of their groups, and how often each is learned from, int64 [N].
    """
    human = [path for name in HUMAN if name != without for path in sets.get(name, ())]
    times = dict.fromkeys(sets[SIMULATED], 1)
    times |= dict.fromkeys(sets[RELION], 1) | dict.fromkeys(human, HUMAN_WEIGHT)
    examples, level = gather(list(times), settings.train)
    often = np.repeat(list(times.values()), [len(r) for r in examples.rows])
    of_relion = np.isin(examples.groups("project"), [Path(path).name for path in sets[RELION]])
    for label in (0, 1):
        mine = of_relion & (examples.labels == label)
        if mine.any():
            share = mine.sum() / of_relion.sum()
            often[mine] = max(1, round(RELION_WEIGHT / 2 / share))
    return examples, level, often


def build(
    out: Path,
    work: Path,
    real: Path | None,
    settings: Settings | None = None,
    folder: str = "sets",
) -> Path:
    """Simulate, prepare, train, measure and write the ensemble with its card.

    Args:
        out: folder of the ensemble; an older one there is replaced.
        work: folder of what takes long; a build that was stopped goes on from it.
        real: folder with ``class-averages-human``; None: simulated jobs alone are learned from.
        settings: of preparation and training; None for `settings_of`.
        folder: of `prepared_sets`.
    """
    settings = settings or settings_of()
    with Show() as show, one_thread():
        relion = RELION_JOBS if there_is_relion() else 0
        if relion < RELION_JOBS:
            show.event(Event("relion.missing", {"program": PROGRAM, "jobs_not_made": RELION_JOBS}))
        sets = prepared_sets(work, PROJECTS, relion, real, show, settings, folder)
        examples, level, times = learned_from(sets, settings)
        levels: Levels = {
            "project": examples.groups("project"),
            "micrograph": examples.groups("micrograph"),
        }
        store = work / "fits" / _digest(examples, times, settings)
        boosted, curves = boosted_of(
            examples, levels, settings, show, times=times, weights=examples.particles, store=store
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    write_ensemble(boosted, curves, examples, level, settings, out)
    rows = {name: unseen(boosted, examples, name, settings) for name in HUMAN if name in sets}
    of = {
        kind: np.isin(levels["project"], [path.name for path in sets[kind]])
        for kind in (SIMULATED, RELION)
        if sets[kind]
    }
    rows |= {
        kind: measured(boosted, examples, mine, boosted.point.threshold)
        for kind, mine in of.items()
    }
    lost = lost_of_each(boosted, examples, of[SIMULATED])
    text = (out / CARD).read_text(encoding="utf-8")
    with replacing(out / CARD) as temporary:
        temporary.write_text(card(rows, lost, settings) + text, encoding="utf-8")
    return out


def _digest(examples: SetExamples, times: np.ndarray, settings: Settings) -> str:
    """What names a training: its examples and how they are learned from."""
    meant = [*(s.digest for s in examples.sets), settings.train.model_dump_json(), repr(MEMBERS)]
    return hashlib.sha256("\n".join(meant).encode() + times.tobytes()).hexdigest()[:16]


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread while this lasts: small images gain nothing from several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def boosted_of(
    examples: Examples,
    levels: Levels,
    settings: Settings,
    show: Show,
    *,
    times: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    store: Path | None = None,
) -> tuple[Boosted, list[Epoch]]:
    """Three rounds over the examples, folds over proteins, as many fits at a time as there are cores.

    Args:
        examples: all of them labelled.
        levels: group ids of the examples, as `models.rounds.boost` takes them.
        settings: of the training.
        show: what tells of progress.
        times: how often each example is learned from, int64 [N]; None: once.
        weights: particles that each example stands for, by which what is lost is counted; None: one.
        store: where each network is kept once it is fitted, of this training alone; None: nowhere.

    Returns:
        what three rounds gave, and the curves of what was fitted just now.
    """
    fits = LocalFits(
        examples,
        settings.train.fit,
        on_epoch=lambda epoch: show.progress(
            Progress("train", epoch.epoch, settings.train.fit.epochs, "epochs", epoch.task)
        ),
        store=store,
    )
    with ThreadPoolExecutor(min(os.cpu_count() or 1, settings.train.folds + 1)) as pool:
        boosted = boost(
            examples,
            levels,
            folds_of_groups(levels["project"], settings.train.folds, settings.train.seed),
            settings.train,
            fit_all=lambda tasks: list(pool.map(fits.fit, tasks)),
            held_out=fits.held_out,
            members=MEMBERS,
            times=times,
            weights=weights,
            on_event=show.event,
        )
    return boosted, sorted(fits.curves, key=lambda epoch: (epoch.task, epoch.epoch))


def unseen(
    boosted: Boosted, examples: SetExamples, protein: str, settings: Settings
) -> Mapping[str, Any]:
    """Numbers on one protein by the networks that never saw it, at a threshold of all others."""
    groups = examples.groups("project")
    mine = groups == protein
    p = boosted.probabilities
    keep = examples.labels == 1
    others: Levels = {"project": groups[~mine], "micrograph": examples.groups("micrograph")[~mine]}
    weights = examples.particles
    chosen = operating_point.choose(
        score(*p[~mine].T),
        keep[~mine],
        others,
        weights=None if weights is None else weights[~mine],
        **settings.train.operating_point.model_dump(),
    )
    return measured(boosted, examples, mine, chosen.threshold)


def measured(
    boosted: Boosted, examples: SetExamples, rows: np.ndarray, threshold: float
) -> Mapping[str, Any]:
    """Accuracy, AUROC, and what is lost of classes and of particles, held out, for some rows, bool [N]."""
    d1, d2, d3 = boosted.probabilities[rows].T
    keep = examples.labels[rows] == 1
    counts = confusion(keep, score(d1, d2, ask_third(d1, d2, d3, threshold)), threshold)
    weights = None if examples.particles is None else examples.particles[rows]
    together = np.zeros(len(keep), np.int64)
    lost = operating_point.losses(score(d1, d2, d3), keep, together, threshold, weights)
    return {
        "n": int(rows.sum()),
        "keep": int(keep.sum()),
        "accuracy": counts.accuracy,
        "false_negative_rate": counts.false_negative_rate or 0.0,
        "particles_lost": lost.get("0", 0.0),
        "auroc": auroc(keep, score(d1, d2, d3)),
        "threshold": threshold,
    }


def lost_of_each(boosted: Boosted, examples: SetExamples, rows: np.ndarray) -> np.ndarray:
    """False-negative rates [proteins] at the ensemble's threshold, by networks that did not see each."""
    groups, threshold = examples.groups("project"), boosted.point.threshold
    return np.array(
        [
            measured(boosted, examples, groups == name, threshold)["false_negative_rate"]
            for name in np.unique(groups[rows])
        ]
    )


def card(rows: Mapping[str, Mapping[str, Any]], lost: np.ndarray, settings: Settings) -> str:
    """What stands before the card that every training writes: on what its numbers rest.

    Args:
        rows: `measured` of each real protein, and of the simulated ones together.
        lost: false-negative rate of each simulated protein, [n].
        settings: of the training.
    """
    bound = settings.train.operating_point.bound
    real = [name for name in rows if name in HUMAN]
    rests = {
        name: "one real protein, by networks and a threshold that it had no part in"
        if name in HUMAN
        else "no real protein; at the ensemble's threshold, by networks that did not see the protein"
        for name in rows
    }
    counted = (
        f"; Class2D jobs of RELION itself on {RELION_JOBS} simulated collections (iterations 6, 9 and 12 of "
        "300 to 700 particles in small boxes), where a class is good if most of its particles are, of ten or "
        "more, and bad if at most a third is (the others are left out), counted "
        f"{RELION_WEIGHT} times each on average, good and bad ones as much together"
    )
    lines = [
        "# 2D classes: what its numbers rest on",
        "",
        f"**Real proteins: {len(real)}** ({', '.join(real) or 'none'}), with the selections of one group of "
        f"people. Simulated ones: {len(lost)}. Each real number below rests on one protein.",
        "",
        "| held out | classes | to keep | AUROC | accuracy | good lost | by particles | threshold "
        "| rests on |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {name} | {row['n']:,} | {row['keep']:,} | {row['auroc']:.3f} | {row['accuracy']:.3f} "
            f"| {row['false_negative_rate']:.1%} | {row['particles_lost']:.1%} | {row['threshold']:.3f} "
            f"| {rests[name]} |"
            for name, row in rows.items()
        ),
        "",
        f"{int((lost <= bound).sum())} of the {len(lost)} simulated proteins lost at most {bound:.0%} of "
        f"their good classes, the worst {lost.max(initial=0):.1%}.",
        "",
        "Folds are over proteins. The networks that judged a held-out protein never saw it; which of the "
        "other images d2 and d3 drew more often does go back to networks that did "
        "(`python -m benchmarks.accuracy.class2d` trains without it altogether), and members are "
        "calibrated with it. "
        "What is lost is counted in particles, as far as jobs say how many a class has. "
        "Networks and settings were not chosen by these numbers, but for these: which frequencies are "
        "compared between classes, and how "
        "many of their correlations, was chosen by AUROC within simulated and these real jobs, each number "
        "by itself. "
        "The look of simulated classes was made to resemble the real ones, "
        "by eye and by how well single features tell the kept from the others.",
        "",
        "Learned from: simulated jobs (`cryoray.simulation.classes`, of random proteins; no structure of a "
        "real one is used)"
        + (counted if RELION in rows else "")
        + (
            "; 300 cryoSPARC classes of beta-galactosidase (EMPIAR-10017) and TcdA1, chosen by people, from "
            "the published screenshots of airis4d/CASSPER, 8-bit greys, which come without a licence file. "
            f"Each of these counts {HUMAN_WEIGHT} times."
            if real
            else "."
        ),
        "",
        "Known weaknesses: no membrane protein, filament or nucleic acid alone among the real data; people "
        "differ in which views they keep, and two sets of labels cannot show how much; a job of fewer than "
        "five classes has no ranks, so that images alone are judged; RELION's jobs of a few hundred "
        "particles hold mixed classes, and the bound is promised for none of them: too few are kept of each.",
        "",
    ]
    return "\n".join(lines) + "\n"
