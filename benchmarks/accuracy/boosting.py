"""What does boosting buy over one network, over three averaged, and over RELION's class-ranker network?

``python -m benchmarks.accuracy.boosting`` trains each on simulated 2D classes of 20 proteins: five folds over
proteins, three seeds, the same splits, epochs and search for a threshold, which never sees a tested
protein. It prepares classes as ``make ensembles KIND=class2d`` does, in the same folder, and keeps
networks beside them, so that a run that was stopped goes on; remove them after a change.
``CRYORAY_BENCH_SEEDS`` and ``CRYORAY_BENCH_EPOCHS`` shorten it. Two and a half hours on two threads of one
core.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.common import Row, main, result
from cryoray.boosting import operating_point
from cryoray.boosting.calibration import fit_platt
from cryoray.boosting.filtering import everything, folds_of_groups
from cryoray.boosting.voting import score
from cryoray.metrics.accuracy import auroc
from cryoray.models.fit import Fit, FitTask, score_rows
from cryoray.models.networks import Network, NetworkConfig
from cryoray.models.rounds import Levels, LocalFits, boost
from cryoray.preparation.examples import SetExamples, gather
from cryoray.recipes.class2d import MEMBERS, SIMULATED, prepared_sets, settings_of
from cryoray.settings import Settings
from cryoray.terminal import Show

PROTEINS, FOLDS = 20, 5
SEEDS = int(os.environ.get("CRYORAY_BENCH_SEEDS", "3"))
#: More than for what ships, which has more proteins.
EPOCHS = int(os.environ.get("CRYORAY_BENCH_EPOCHS", "6"))
_WORK = Path("build/ensembles/class2d.work")

ONE, DEEPER, ALIKE, ALIKE_VOTE, KINDS, KINDS_VOTE, BOOSTED, BOOSTED_MEAN, RELION = ARMS = (
    "one network, d1",
    "one network, of d2's kind",
    "three of d1's kind, averaged",
    "three of d1's kind, vote",
    "three kinds, averaged",
    "three kinds, vote",
    "three kinds, boosted, vote",
    "three kinds, boosted, averaged",
    "RELION's network",
)


class Said(NamedTuple):
    """What an arm said of a fold that it had not seen.

    Attributes:
        scores: float32 [n].
        threshold: where it keeps; chosen on the proteins it was trained on, each left out in turn.
    """

    scores: np.ndarray
    threshold: float


#: What RELION's network has in common with ours: the width of its last layer, and how much of it is dropped.
RANKER = NetworkConfig(head=48, dropout=0.3)
_RANKER_RATE = 1e-3


class Ranker(Network):
    """The network of RELION's class ranker, from the layers that its authors published.

    Nine 3×3 convolutions of 16 to 128 channels, every third with stride 2, then 48 numbers that join
    the features. It has no normalisation; missing features are zero, without a mask.

    Args:
        features: how many there are.
    """

    def __init__(self, features: int) -> None:
        super().__init__(RANKER, features)
        del self.stem, self.stages, self.metadata, self.head
        layers: list[nn.Module] = []
        channels = 1
        for stage in range(3):
            width = 16 * 2**stage
            for out, stride in ((width, 1), (width, 1), (2 * width, 2)):
                layers.append(nn.Conv2d(channels, out, 3, stride, padding=1))
                if stride == 1:
                    layers.append(nn.ReLU(inplace=True))
                channels = out
        self.look = nn.Sequential(*layers)
        self.seen = nn.LazyLinear(48)
        self.fused = nn.Linear(48 + features, 48)

    def forward(self, images: Tensor, features: Tensor, dropout: Tensor | None = None) -> Tensor:
        """See `Network.forward`."""
        seen = self.seen(self.look(images[:, None]).flatten(1))
        standard = ((features - self.feature_mean) / self.feature_std).clamp(-5, 5)
        fused = functional.relu(self.fused(torch.cat([seen, standard.nan_to_num(0)], 1)))
        logit: Tensor = self.verdict(fused if dropout is None else fused * dropout)
        return logit[:, 0]


class RankerFit(Fit):
    """A fit of RELION's network by our own loop."""

    def new(self) -> Network:
        """See `Fit.new`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.task.seed)
            network = Ranker(self.examples.features.shape[1])
            box = self.examples.images(np.zeros(1, np.int64)).shape[-1]
            network(torch.zeros(1, box, box), torch.zeros(1, len(network.feature_mean)))
            return network


class Probabilities(NamedTuple):
    """What a member says, calibrated.

    Attributes:
        held_out: of what is learned from, each part by the network that did not see it; float32 [N].
        tested: of what is tested; float32 [n].
    """

    held_out: np.ndarray
    tested: np.ndarray


class Fold:
    """The proteins that are learned from, and those that are tested, in one fold and with one seed.

    Args:
        learned: the former.
        tested: the latter.
        settings: of the training.
        store: where fitted networks are kept.
    """

    def __init__(
        self, learned: SetExamples, tested: SetExamples, settings: Settings, store: Path
    ) -> None:
        self.learned, self.tested, self.train = learned, tested, settings.train
        self.keep = learned.labels == 1
        self.levels: Levels = {
            "project": learned.groups("project"),
            "micrograph": learned.groups("micrograph"),
        }
        self.fold_of = folds_of_groups(self.levels["project"], self.train.folds, self.train.seed)
        self.fits = LocalFits(learned, self.train.fit, store=store)
        slower = self.train.fit.model_copy(update={"learning_rate": _RANKER_RATE})
        self.ranker_fits = LocalFits(learned, slower, store=store, kind=RankerFit)

    def said(self) -> dict[str, Said]:
        """All arms; what they share is fitted once."""
        d1 = self._member(MEMBERS[0], "d1", 0)
        alike = [d1, *(self._member(MEMBERS[0], f"alike{n}", n) for n in (1, 2))]
        kinds = [d1, *(self._member(MEMBERS[n], f"kind{n}", n) for n in (1, 2))]
        boosted = self._boosted()
        return {
            ONE: self._averaged([d1]),
            DEEPER: self._averaged([kinds[1]]),
            ALIKE: self._averaged(alike),
            ALIKE_VOTE: self._voted(alike),
            KINDS: self._averaged(kinds),
            KINDS_VOTE: self._voted(kinds),
            BOOSTED: self._voted(boosted),
            BOOSTED_MEAN: self._averaged(boosted),
            RELION: self._averaged([self._member(RANKER, "ranker", 0, self.ranker_fits)]),
        }

    def _boosted(self) -> list[Probabilities]:
        boosted = boost(
            self.learned,
            self.levels,
            self.fold_of,
            self.train,
            fit_all=self.fits,
            held_out=self.fits.held_out,
            members=MEMBERS,
        )
        return [
            Probabilities(held_out, platt(self._test(network)))
            for network, platt, held_out in zip(
                boosted.networks, boosted.calibration, boosted.probabilities.T, strict=True
            )
        ]

    def _member(
        self, config: NetworkConfig, name: str, number: int, fits: LocalFits | None = None
    ) -> Probabilities:
        """A network that draws all images alike, with the seeds of `boost`."""
        seed = self.train.seed * 1000 + number * 100
        all_alike, nothing = everything(len(self.fold_of)), np.empty(0, np.int64)
        tasks = [
            FitTask(
                f"{name}-fold{part}",
                config,
                all_alike.within(np.flatnonzero(self.fold_of != part)),
                nothing,
                seed + part,
            )
            for part in range(self.train.folds)
        ]
        tasks.append(FitTask(f"{name}-final", config, all_alike, nothing, seed + 99))
        *of_folds, final = (fits or self.fits)(tasks)
        logit = self.fits.held_out(of_folds, self.fold_of)
        platt = fit_platt(logit, self.keep)
        return Probabilities(platt(logit), platt(self._test(final)))

    def _test(self, network: Network) -> np.ndarray:
        return score_rows(network, self.tested, np.arange(len(self.tested)))

    def _averaged(self, members: Sequence[Probabilities]) -> Said:
        held_out, tested = (np.mean(p, axis=0) for p in zip(*members, strict=True))
        return Said(tested.astype(np.float32), self._threshold(held_out))

    def _voted(self, members: Sequence[Probabilities]) -> Said:
        threshold = self._threshold(score(*(member.held_out for member in members)))
        d1, d2, d3 = (member.tested for member in members)
        d3 = operating_point.ask_third(d1, d2, d3, threshold)
        return Said(score(d1, d2, d3), threshold)

    def _threshold(self, scores: np.ndarray) -> float:
        wanted = self.train.operating_point.model_dump()
        return operating_point.choose(scores, self.keep, self.levels, **wanted).threshold


def measure() -> dict[str, Any]:
    """Accuracy and false negatives of each arm, their spread over seeds, and verdicts that differ."""
    with Show() as show:
        sets = prepared_sets(_WORK, PROTEINS, 0, None, show)[SIMULATED]
    work = _WORK / f"boosting-{EPOCHS}"
    work.mkdir(exist_ok=True)
    jobs = [(seed, fold) for fold in range(FOLDS) for seed in range(SEEDS)]
    # Spawned: torch's threads do not survive a fork.
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        done = pool.map(partial(_fold, sets, work), *zip(*jobs, strict=True))
        of_job = dict(zip(jobs, done, strict=True))
    rows = [_row(arm, of_job) for arm in ARMS]
    return result(
        "What does boosting buy?",
        rows,
        ratios=(),
        notes=[
            f"2D classes of {PROTEINS} simulated proteins, {FOLDS} folds over proteins, {SEEDS} seeds, "
            f"{EPOCHS} epochs; ± is the standard deviation over seeds",
            "differ: classes whose forced verdict is another one with another seed",
        ],
    )


def _fold(
    sets: Sequence[Path], work: Path, seed: int, fold: int
) -> tuple[np.ndarray, dict[str, Said]]:
    """Which classes of one fold of the proteins are good, bool [n], and what all arms say without it."""
    torch.set_num_threads(1)
    settings = settings_of(EPOCHS, seed)
    examples, _ = gather(sets, settings.train)
    # The folds are the same for all seeds, so that their verdicts can be compared.
    here = folds_of_groups(examples.groups("project"), FOLDS, 0) == fold
    tested = examples.where(here)
    arms = Fold(examples.where(~here), tested, settings, work / f"seed{seed}-fold{fold}")
    return tested.labels == 1, arms.said()


def _row(arm: str, of_job: dict[tuple[int, int], tuple[np.ndarray, dict[str, Said]]]) -> Row:
    keep = np.concatenate([of_job[0, fold][0] for fold in range(FOLDS)])
    judged, ranked = [], []
    for seed in range(SEEDS):
        folds = [(good, said[arm]) for good, said in (of_job[seed, f] for f in range(FOLDS))]
        judged.append(
            np.concatenate([said.scores >= np.float32(said.threshold) for _, said in folds])
        )
        ranked.append(float(np.mean([auroc(good, said.scores) for good, said in folds])))
    accuracy = [float(np.mean(one == keep)) for one in judged]
    differ = [float(np.mean(one != other)) for one, other in combinations(judged, 2)]
    row: Row = {"arm": arm, "classes": len(keep), "AUROC": f"{np.mean(ranked):.4f}"}
    spread = f" ± {np.std(accuracy, ddof=1):.4f}" if SEEDS > 1 else ""
    row["accuracy"] = f"{np.mean(accuracy):.4f}{spread}"
    row["good lost"] = f"{np.mean([np.mean(~one[keep]) for one in judged]):.2%}"
    row["junk let through"] = f"{np.mean([np.mean(one[~keep]) for one in judged]):.1%}"
    row["differ"] = f"{np.mean(differ):.2%}" if differ else None
    return row


if __name__ == "__main__":
    main(measure)
