"""Heads with which an ensemble judges within a project, added to one that has just been trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from cryoray.boosting import filtering, operating_point
from cryoray.boosting.calibration import fit_platt
from cryoray.boosting.filtering import Sampler, folds_of_groups
from cryoray.boosting.prevalence import log_odds
from cryoray.boosting.voting import score
from cryoray.engine.local import in_threads
from cryoray.formats.files import replacing
from cryoray.formats.names import CARD, TRAINING
from cryoray.imaging.augment import AugmentParameters, augment, draw
from cryoray.metrics.accuracy import auroc
from cryoray.models.context import (
    QUANTILES,
    Head,
    HeadConfig,
    Heads,
    Moments,
    directions,
    moments,
    nearness,
)
from cryoray.models.ensemble import (
    HELD_OUT,
    Calibration,
    Context,
    DrawnLine,
    Ensemble,
    save_weights,
    training_record,
)
from cryoray.models.fit_heads import Looked, fit_head
from cryoray.models.fit_shift import cross_fitted, fit_shift
from cryoray.models.networks import DEFAULT_MEMBERS, Network, embedded
from cryoray.models.profile import sampled
from cryoray.models.rounds import HELD_OUT_LOGITS, Levels, filtered
from cryoray.preparation.examples import Level, SetExamples, gather
from cryoray.records import MEMBERS, Event, OnEvent, OnProgress, Progress, ignore
from cryoray.settings import TrainSettings

#: Below this many projects, contexts are not learned unless somebody asks for it.
ENOUGH_PROJECTS = 40
#: Images of a project that heads learn from; every second project comes in another version, too.
_PER_PROJECT, _VERSIONS_OF = 128, 2
#: Directions along which profiles are compared; parts of the projects that are left out in turn to see
#: how far new ones are; share of those that count as familiar.
_DIRECTIONS, _PARTS, _FAMILIAR = 12, 5, 0.97
#: Directions from which follows how far a project's scores are moved; with fewer projects none is.
_ALONG, _ENOUGH_TO_SHIFT = 20, 100
_SEED = 700
_HEAD = HeadConfig()


def wanted(examples: SetExamples, settings: TrainSettings) -> bool:
    """Whether an ensemble learns to judge within a project."""
    if settings.context is not None:
        return settings.context
    return len(np.unique(examples.groups("project"))) >= ENOUGH_PROJECTS


def train_context(
    sets: Sequence[Path],
    ensemble: Path,
    rounds: Path,
    settings: TrainSettings,
    *,
    on_progress: OnProgress = ignore,
    on_event: OnEvent = ignore,
) -> None:
    """Have an ensemble judge within projects: a head for each member, on what the member sees.

    Boosting, calibration and the operating point are those of training: each head is fitted once for each
    fold, on what that fold's network sees of the other groups, and is measured on the groups of the fold,
    each project by its own profile; what was wrong there decides what the next member's head learns from.
    It runs in threads of this process: heads are small, and images are looked at once by each network.

    Args:
        sets: folders of prepared sets, as trained on.
        ensemble: folder of the ensemble, which is written anew, with another digest.
        rounds: folder of the networks of all rounds and folds.
        settings: as trained with.
        on_progress: called after each fit.
        on_event: ``context.learned``, with the AUROC over groups not seen, with and without context.
    """
    examples, level = gather(sets, settings)
    keep = examples.labels == 1
    levels: Levels = {name: examples.groups(name) for name in get_args(Level)}
    heads, calibration, of_projects, p = fit_heads(
        examples, level, rounds, settings, on_progress=on_progress
    )
    kept, familiar = _kept(heads, of_projects)
    if len(np.unique(levels["project"].astype(str))) >= _ENOUGH_TO_SHIFT:
        calibration, p = _shifted(examples, kept, of_projects, rounds, calibration, p)
    chosen = settings.operating_point
    probabilities = np.stack(p, 1)
    lines = operating_point.lines(
        probabilities, keep, levels, weights=examples.particles, **chosen.model_dump()
    )
    drawn, median = lines[chosen.policy], score(p[0], p[1], p[2])
    deployed = score(p[0], p[1], operating_point.ask_third(p[0], p[1], p[2], drawn.point.threshold))
    c1, c2, c3 = calibration
    context = Context(
        head=_HEAD,
        profiles=len(kept.profiles),
        directions=kept.profiles.shape[1],
        shift=kept.along,
        familiar=familiar,
        calibration=(c1, c2, c3),
        threshold=drawn.point.threshold,
        review=drawn.review,
        operating_point=drawn.point.as_json(),
        operating_points={
            policy: DrawnLine.model_validate(each.as_json()) for policy, each in lines.items()
        },
        expectation=tuple(
            operating_point.expectation(median, keep, levels["project"], examples.particles)
        ),
    )
    table = pq.read_table(ensemble / HELD_OUT)
    truth = keep.astype(int)
    numbers: dict[str, object] = {
        "projects": len(np.unique(levels["project"].astype(str))),
        "auroc": auroc(truth, deployed),
        "auroc_without": auroc(truth, table["score"].to_numpy()),
    }
    with replacing(ensemble / HELD_OUT) as temporary:
        pq.write_table(_with_scores(table, deployed), temporary)
    with replacing(ensemble / TRAINING) as temporary:
        text = json.dumps({**training_record(ensemble), "context": numbers}, indent=1)
        temporary.write_text(text, encoding="utf-8")
    card = (ensemble / CARD).read_text(encoding="utf-8").rstrip("\n")
    judge = Ensemble.load(ensemble)
    judge.with_context(context, kept).save(ensemble, card + "\n" + _section(context, numbers))
    on_event(Event("context.learned", numbers))


class FittedHeads(NamedTuple):
    """What `fit_heads` gives, one each for d1, d2 and d3.

    Attributes:
        heads: of the members.
        calibration: of their logits within projects.
        projects: what each member sees of the projects of training, in all versions.
        probabilities: float32 [N] each, held-out calibrated probabilities of keep within projects.
    """

    heads: list[Head]
    calibration: list[Calibration]
    projects: list[Moments]
    probabilities: list[np.ndarray]


def fit_heads(
    examples: SetExamples,
    level: Level,
    rounds: Path,
    settings: TrainSettings,
    *,
    on_progress: OnProgress = ignore,
) -> FittedHeads:
    """The heads of all members by boosting; what is fitted is kept in ``rounds`` and not fitted again.

    Args:
        examples: that the members were trained on.
        level: of their groups.
        rounds: as `train_context`.
        settings: as trained with.
        on_progress: called after each fit.
    """
    keep = examples.labels == 1
    fold_of = folds_of_groups(examples.groups(level), settings.folds, settings.seed)
    work = _Work(examples, _by_group(examples.groups("project")), fold_of, settings, rounds)
    levels: Levels = {name: examples.groups(name) for name in get_args(Level)}
    suspects = np.zeros(len(keep), bool)
    made = FittedHeads([], [], [], [])
    p = made.probabilities
    for number, name in enumerate(MEMBERS):
        if number == 1:
            suspects = filtering.suspected_labels(p[0], keep)
        sampler = filtered(p, keep, levels, settings, suspects)
        logit = np.empty(len(keep), np.float32)
        parts = ["final", *(f"fold{fold}" for fold in range(int(fold_of.max()) + 1))]
        weight = _weights(sampler, len(keep))
        fits = in_threads(partial(work.fit, number, weight), enumerate(parts))
        for done, fit in enumerate(fits, 1):
            if len(fit.rows):
                logit[fit.rows] = fit.held_out
            else:
                made.heads.append(fit.head)
                made.projects.append(fit.projects)
            total = 3 * len(parts)
            on_progress(Progress("context", number * len(parts) + done, total, "heads", name))
        platt = fit_platt(logit, keep)
        made.calibration.append(Calibration(slope=platt.slope, offset=platt.offset))
        p.append(platt(logit))
    return made


class _Fitted(NamedTuple):
    """A head, and what it or its network said.

    Attributes:
        head: of a fold, or of the member itself.
        rows: int64 [n], of the fold; none of the member itself.
        held_out: float32 [n], logits of those, each project by its own profile.
        projects: what the network sees of each project.
    """

    head: Head
    rows: np.ndarray
    held_out: np.ndarray
    projects: Moments

    def save(self, file: Path) -> None:
        tensors = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        tensors |= {f"projects.{name}": value for name, value in self.projects._asdict().items()}
        rows, held_out = torch.from_numpy(self.rows), torch.from_numpy(self.held_out)
        save_weights(file, {**tensors, "rows": rows, "held_out": held_out})

    @classmethod
    def load(cls, file: Path, seen: int) -> _Fitted:
        tensors = load_file(file)
        head = Head(seen, _HEAD).eval()
        head.load_state_dict({name: tensors[f"head.{name}"] for name in head.state_dict()})
        projects = Moments(*(tensors[f"projects.{name}"] for name in Moments._fields))
        return cls(head, tensors["rows"].numpy(), tensors["held_out"].numpy(), projects)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """What every fit of a head needs."""

    examples: SetExamples
    projects: Sequence[np.ndarray]
    fold_of: np.ndarray
    settings: TrainSettings
    rounds: Path

    def fit(self, member: int, weight: np.ndarray, part: tuple[int, str]) -> _Fitted:
        """The head of a member (part 0, ``final``) or of its network of a fold."""
        number, name = part
        folder = self.rounds / MEMBERS[member]
        network = Network(DEFAULT_MEMBERS[member], self.examples.features.shape[1])
        network.load_state_dict(load_file(folder / f"{MEMBERS[member]}-{name}.safetensors"))
        kept = folder / f"{MEMBERS[member]}-{name}-head.safetensors"
        if kept.is_file():
            return _Fitted.load(kept, network.channels)
        inside = self.fold_of != number - 1
        looked = self._look(network.eval(), inside, weight)
        seed = self.settings.seed * 1000 + _SEED + 10 * member + number
        head = fit_head(looked, _HEAD, seed, self.settings.context_steps)
        each = [moments(looked.seen[rows], looked.logit[rows]) for rows in looked.projects]
        rows, held_out_logits = self._held_out(network, head, ~inside)
        fitted = _Fitted(
            head, rows, held_out_logits, Moments(*map(torch.cat, zip(*each, strict=True)))
        )
        fitted.save(kept)
        return fitted

    def _look(self, network: Network, inside: np.ndarray, weight: np.ndarray) -> Looked:
        """Images of each project inside, as they are, and of some projects in another version."""
        seen, logit, rows, projects, start = [], [], [], [], 0
        for number, project in enumerate(self.projects):
            some = _spread(project[inside[project]], _PER_PROJECT)
            if not len(some):
                continue
            images = torch.from_numpy(self.examples.images(some))
            versions = [images]
            if number % _VERSIONS_OF == 0:
                versions.append(
                    augment(
                        images, _of_one_project(len(some), number, self.settings, images.shape[-1])
                    )
                )
            features = torch.from_numpy(self.examples.features[some])
            for version in versions:
                found, own = embedded(network, version, features)
                seen.append(found)
                logit.append(own)
                rows.append(some)
                projects.append(np.arange(start, start + len(some)))
                start += len(some)
        of = np.concatenate(rows)
        keep = self.examples.labels[of] == 1
        return Looked(torch.cat(seen), torch.cat(logit), keep, weight[of], projects)

    def _held_out(
        self, network: Network, head: Head, outside: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits of all images outside, with the rows that these are."""
        of, held_out_logits = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for project in self.projects:
            rows = project[outside[project]]
            if not len(rows):
                continue
            features = torch.from_numpy(self.examples.features[rows])
            seen, own = embedded(network, torch.from_numpy(self.examples.images(rows)), features)
            some = torch.from_numpy(sampled(np.arange(len(rows))))
            with torch.inference_mode():
                logit = head(seen[None], own[None], moments(seen[some], own[some]))[0]
            of.append(rows)
            held_out_logits.append(logit.numpy())
        return np.concatenate(of), np.concatenate(held_out_logits)


def _by_group(groups: np.ndarray) -> list[np.ndarray]:
    """The rows of each group, int64."""
    names, members = np.unique(groups.astype(str), return_inverse=True)
    order = np.argsort(members, kind="stable")
    return np.split(order, np.cumsum(np.bincount(members, minlength=len(names)))[:-1])


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(np.int64)]


def _weights(sampler: Sampler, n: int) -> np.ndarray:
    """How often an epoch shows each example on average, float32 [n]."""
    weight = np.zeros(n, np.float32)
    for stratum in sampler.strata:
        weight[stratum.rows] += stratum.count / len(stratum.rows)
    return weight


def _of_one_project(n: int, number: int, settings: TrainSettings, box: int) -> AugmentParameters:
    """Augmentation of a whole project, as another microscope or program would have given it.

    Images move one by one; filter, noise, mask and smoothing are the same for all of them.
    """
    generator = torch.Generator().manual_seed(settings.seed * 10_000 + number)
    drawn = draw(n, generator, settings.fit.augment, box)
    same = {
        name: getattr(drawn, name)[:1].expand_as(getattr(drawn, name))
        for name in ("waves", "noise", "rings", "mask", "smooth")
    }
    return replace(drawn, **same)


def _kept(heads: Sequence[Head], of_projects: Sequence[Moments]) -> tuple[Heads, float]:
    """The heads with the profiles of training, and the distance within which a new one is familiar.

    That is measured on projects left out in turn.
    """
    d1, d2, d3 = heads
    kept = Heads((len(d1.mean), len(d2.mean), len(d3.mean)), _HEAD, 1, 1)
    kept.of = torch.nn.ModuleList(heads)
    described = kept.described(of_projects)
    part = _parts(len(described))
    far = []
    for left_out in range(int(part.max()) + 1):
        others, new = described[part != left_out], described[part == left_out]
        if len(others):
            centre, axes = directions(others, _DIRECTIONS)
            far.append(nearness((new - centre) @ axes, (others - centre) @ axes))
    kept.centre, kept.axes = directions(described, _DIRECTIONS)
    kept.profiles = (described - kept.centre) @ kept.axes
    return kept, float(torch.quantile(torch.cat(far), _FAMILIAR)) if far else 0.0


def _parts(projects: int) -> np.ndarray:
    """Which of `_PARTS` parts each project is in, int64 [p]."""
    return np.random.default_rng(0).permutation(projects) % min(_PARTS, projects)


def _shifted(
    examples: SetExamples,
    kept: Heads,
    of_projects: Sequence[Moments],
    rounds: Path,
    calibration: Sequence[Calibration],
    p: Sequence[np.ndarray],
) -> tuple[list[Calibration], list[np.ndarray]]:
    """Have the heads move each project's scores, so that one line serves all (`models.fit_shift`).

    Returns:
        the members' calibration and held-out probabilities, float32 [N] each, with every project moved by
        what was learned from others.
    """
    projects = _by_group(examples.groups("project"))
    # Of those that are there in two versions the first.
    versions = [2 if number % _VERSIONS_OF == 0 else 1 for number in range(len(projects))]
    first = torch.from_numpy(np.cumsum([0, *versions[:-1]]))
    plain = [Moments(*(each[first] for each in of_member)) for of_member in of_projects]
    described = kept.described(plain)
    centre, axes = directions(kept.described(of_projects), _ALONG)
    # Quantiles are of networks that had not seen the project: a new one has not been seen either.
    unseen = [np.load(rounds / name / HELD_OUT_LOGITS) for name in MEMBERS]
    quantiles = [
        torch.tensor(np.stack([np.quantile(logit[rows], QUANTILES) for rows in projects])).float()
        for logit in unseen
    ]
    values = torch.cat([*quantiles, (described - centre) @ axes], 1)
    x = log_odds(score(p[0], p[1], p[2]))
    keep = examples.labels == 1
    told = [x[rows] for rows in projects], [keep[rows] for rows in projects]
    by = np.empty(len(keep), np.float32)
    moved = cross_fitted(values, *told, _parts(len(projects)))
    for rows, of_project in zip(projects, moved, strict=True):
        by[rows] = of_project
    platt = fit_platt((x - by).astype(np.float32), keep)
    shift = fit_shift(values, *told)
    for each in (shift.weight, shift.offset, shift.ends):
        each *= platt.slope
    kept.along, kept.shift = _ALONG, shift
    kept.axes = torch.cat([kept.axes, axes[:, kept.axes.shape[1] :]], 1)
    return (
        [
            Calibration(slope=c.slope * platt.slope, offset=c.offset * platt.slope + platt.offset)
            for c in calibration
        ],
        [platt((log_odds(of_member) - by).astype(np.float32)) for of_member in p],
    )


def _with_scores(table: pa.Table, scores: np.ndarray) -> pa.Table:
    """The table of held-out predictions with what was said within projects, `score_in_project`."""
    name = "score_in_project"
    if name in table.column_names:
        table = table.drop_columns(name)
    return table.append_column(name, pa.array(scores, pa.float32()))


def _section(context: Context, numbers: Mapping[str, object]) -> str:
    """What the card says of judging within a project."""
    return "\n".join(
        [
            "",
            "## Within a project",
            "",
            "Where the profile of a project is known, which `cryoray classify` makes of the project's own "
            f"images, scores are made comparable by it: over {numbers['projects']} projects, each judged by "
            "networks that had not seen it, the AUROC of all images together is "
            f"{numbers['auroc']:.3f} with profiles and {numbers['auroc_without']:.3f} without. The threshold "
            f"is then {context.threshold:.4f}. A profile farther than {context.familiar:.2f} from those of "
            "training is not used.",
            "",
        ]
    )
