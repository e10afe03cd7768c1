"""What the image and the metadata are each worth: one hidden, one shuffled, one alone and trained again.

The image is seen once; metadata join late (`networks.Network.say`), so that hiding or shuffling a column
costs next to nothing. Networks train with metadata dropout, so that hidden metadata are nothing new to
them; still they were made to have both, and only a training without one says what it is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cryoray.boosting.calibration import Platt
from cryoray.boosting.filtering import folds_of_groups
from cryoray.boosting.voting import score
from cryoray.metrics import accuracy
from cryoray.metrics.accuracy import auroc
from cryoray.models.ensemble import Ensemble
from cryoray.models.fit import score_rows
from cryoray.models.networks import NetworkConfig
from cryoray.models.rounds import Levels, LocalFits, boost
from cryoray.preparation.examples import Level
from cryoray.preparation.prepared import PreparedSet
from cryoray.settings import AugmentSettings, Settings, TrainSettings

#: Rows of the table of importance that are no column.
IMAGE, METADATA = "the image", "all metadata"

#: Images seen at once.
_BATCH = 256

#: The networks without an image: what fuses metadata is as in the others; they see a blank of this side.
_BLANK = 16
_BLIND = (
    NetworkConfig(width=8, blocks=(1,), activation="silu"),
    NetworkConfig(width=8, blocks=(1,), activation="gelu"),
    NetworkConfig(width=8, blocks=(1,), activation="relu"),
)
_UNCHANGED = AugmentSettings(
    rotate=False, shift=0, magnify=0, contrast=0, filter=0, ctf_modulation=0, noise=0, mask=0
)


class CachedPredictor:
    """An ensemble that has seen some images and is asked about them with one set of metadata after another.

    d3 is asked everywhere, so a score is the median of three.

    Args:
        ensemble: that judges.
        images: gives prepared images of rows, float32 [n, box, box].
        rows: int64 [n], what it sees.
    """

    def __init__(
        self, ensemble: Ensemble, images: Callable[[np.ndarray], np.ndarray], rows: np.ndarray
    ) -> None:
        self._members = [
            (network, Platt(c.slope, c.offset))
            for network, c in zip(ensemble.networks, ensemble.manifest.calibration, strict=True)
        ]
        parts: list[list[Tensor]] = [[], [], []]
        for some in np.array_split(rows, max(1, -(-len(rows) // _BATCH))):
            batch = torch.from_numpy(images(some))
            for (network, _), seen in zip(self._members, parts, strict=True):
                with torch.inference_mode():
                    seen.append(network.see(batch.to(network.feature_mean.device)))
        self._seen = [torch.cat(seen) for seen in parts]

    def score(self, features: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
        """float32 [n], with metadata [n, F]; image i is that of row ``order[i]``, or its own."""
        probabilities = []
        for (network, platt), seen in zip(self._members, self._seen, strict=True):
            some = seen if order is None else seen[torch.from_numpy(order)]
            with torch.inference_mode():
                logit = network.say(some, torch.from_numpy(features).to(seen.device))
            probabilities.append(platt(logit.float().cpu().numpy()))
        return score(*probabilities)


def importance(
    predictor: CachedPredictor,
    features: np.ndarray,
    names: Sequence[str],
    labels: np.ndarray,
    groups: np.ndarray,
    threshold: float,
    *,
    shuffles: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """What is lost when one column is shuffled among the images of its group (Breiman 2001).

    Within groups, since a column that tells groups apart would otherwise seem to tell images apart. What
    a column shares with others is not lost with it, so two that say the same both look unimportant.

    Args:
        predictor: has seen the images.
        features: float32 [n, F].
        names: of the columns.
        labels: bool [n], True is keep.
        groups: ids, [n].
        threshold: the ensemble's.
        shuffles: of each column.
        seed: of the shuffling.

    Returns:
        ``columns``: for each, for `METADATA` together and for `IMAGE`, the mean over shuffles of what
        ``auroc`` and ``accuracy`` lose, the deviation ``auroc_std``, and ``changed``, the fraction of
        verdicts that turn; ``images``, ``shuffles``, and over what the ``deviation`` is.
    """
    before = predictor.score(features)
    area, kept = auroc(labels, before), before >= threshold
    table: dict[str, dict[str, float]] = {}
    for row, name in enumerate((IMAGE, METADATA, *names)):
        lost = []
        for shuffle in range(shuffles):
            order = _within(groups, np.random.default_rng((seed, row, shuffle)))
            if name == IMAGE:
                after = predictor.score(features, order)
            else:
                mixed = features.copy()
                which = slice(None) if name == METADATA else [row - 2]
                mixed[:, which] = features[order][:, which]
                after = predictor.score(mixed)
            now = after >= threshold
            accuracy = np.mean(kept == labels) - np.mean(now == labels)
            lost.append((area - auroc(labels, after), accuracy, np.mean(now != kept)))
        values = np.array(lost)
        table[name] = dict(
            zip(("auroc", "accuracy", "changed"), values.mean(0).tolist(), strict=True)
        )
        table[name]["auroc_std"] = float(values[:, 0].std(ddof=1))
    return {
        "columns": table,
        "images": len(labels),
        "shuffles": shuffles,
        "deviation": "shuffles",
    }


def _within(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A permutation, int64 [n], that moves no row into another group."""
    _, group = np.unique(groups.astype(str), return_inverse=True)
    shuffled = np.lexsort((rng.random(len(group)), group))
    order = np.empty(len(group), np.int64)
    order[np.argsort(group, kind="stable")] = shuffled
    return order


class Blind:
    """Examples whose images show nothing.

    Args:
        features: float32 [N, F], NaN where missing.
        labels: int8 [N], 1 keep and 0 discard.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray) -> None:
        self.features, self.labels = features, labels

    def images(self, rows: np.ndarray) -> np.ndarray:
        """See `models.fit.Examples`."""
        return np.zeros((len(rows), _BLANK, _BLANK), np.float32)


def metadata_alone(
    features: np.ndarray,
    labels: np.ndarray,
    levels: Levels,
    groups: np.ndarray,
    settings: TrainSettings,
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Train three networks that never see an image, in the way of all others.

    Args:
        features: float32 [n, F], NaN where missing.
        labels: int8 [n], 1 keep and 0 discard.
        levels: group ids for the operating point, [n] each.
        groups: ids over which folds are made, [n].
        settings: of the training.

    Returns:
        what gives scores, float32 [m], of metadata [m, F]; and its threshold.
    """
    fit = settings.fit.model_copy(update={"metadata_dropout": 0.0, "augment": _UNCHANGED})
    examples = Blind(features, labels)
    fits = LocalFits(examples, fit)
    boosted = boost(
        examples,
        levels,
        folds_of_groups(groups, settings.folds, settings.seed),
        settings.model_copy(update={"fit": fit}),
        fit_all=fits,
        held_out=fits.held_out,
        members=_BLIND,
    )

    def judge(new: np.ndarray) -> np.ndarray:
        blind, rows = Blind(new, np.zeros(len(new), np.int8)), np.arange(len(new))
        return score(
            *(
                platt(score_rows(network, blind, rows))
                for network, platt in zip(boosted.networks, boosted.calibration, strict=True)
            )
        )

    return judge, boosted.point.threshold


def together(pieces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The importance over several folds, weighted by their images; deviations are over folds.

    A column that a fold's ensemble does not use counts as unimportant there.
    """
    images = [piece["images"] for piece in pieces]
    columns: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for piece in pieces for name in piece["columns"]):
        rows = [piece["columns"].get(name, {}) for piece in pieces]
        columns[name] = {
            key: float(np.average([row.get(key, 0.0) for row in rows], weights=images))
            for key in ("auroc", "accuracy", "changed")
        }
        columns[name]["auroc_std"] = float(np.std([row.get("auroc", 0.0) for row in rows], ddof=1))
    shuffles = pieces[0]["shuffles"]
    return {"columns": columns, "images": sum(images), "shuffles": shuffles, "deviation": "folds"}


def summary(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Of `accuracy.metrics`, what an ablation compares, with its deviation over groups."""
    names = ("accuracy", "false_negative_rate", "false_positive_rate", "auroc")
    return {
        "n": numbers["n"],
        **{name: numbers[name] for name in names},
        "spread": {name: numbers["spread"][name] for name in names},
    }


def by_metadata(
    judge: Ensemble,
    examples: PreparedSet,
    others: np.ndarray,
    rows: np.ndarray,
    level: Level,
    settings: Settings,
    predictions: pa.Table,
) -> pa.Table:
    """Predictions for a fold's rows by networks that learned from other rows' metadata alone."""
    features = examples.feature_matrix(judge.features)
    metadata_score, threshold = metadata_alone(
        features[others],
        examples.labels[others],
        {name: examples.groups(name)[others] for name in get_args(Level)},
        examples.groups(level)[others],
        settings.train,
    )
    n = len(rows)
    alone = {
        "score": metadata_score(features[rows]),
        "threshold": np.full(n, threshold, np.float32),
    }
    for name, values in {**alone, "verdict": [""] * n}.items():
        column = pa.array(values)
        predictions = predictions.set_column(predictions.column_names.index(name), name, column)
    return predictions


def ablation_of(
    judge: Ensemble, examples: PreparedSet, rows: np.ndarray, settings: Settings
) -> dict[str, Any]:
    """What becomes of an ensemble's scores where its metadata are hidden, or a column is shuffled."""
    most = settings.evaluate.ablate_images
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    groups, labels = examples.groups(judge.manifest.split_by)[rows], examples.labels[rows] == 1
    features = examples.feature_matrix(judge.features)[rows]
    predictor = CachedPredictor(judge.to(), examples.images, rows)
    given = {"both": features, "image": np.full_like(features, np.nan)}
    return {
        "hidden": {
            name: summary(
                accuracy.metrics(
                    labels,
                    predictor.score(known),
                    threshold=judge.threshold,
                    review=np.zeros(len(rows), bool),
                    groups=groups,
                )
            )
            for name, known in given.items()
        },
        "permutation": importance(
            predictor,
            features,
            judge.features,
            labels,
            groups,
            judge.threshold,
            shuffles=settings.evaluate.shuffles,
        ),
    }
