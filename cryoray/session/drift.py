"""Whether a session drifts: from its own past, and from what the ensemble was trained on.

Each micrograph gives each *channel* one number (its keep rate, its mean score, its defocus …), and each
channel has one detector.

**Own past.** The rank of the number among all earlier ones of the session is a conformal p-value: if
micrographs are exchangeable, these are independent and uniform, whatever the distribution, and however
much more micrographs differ than images of one would (Vovk, Nouretdinov, Gammerman, ICML 2003).

**Training.** The keep rate is compared with the share of keep in training, and so is the mean score,
which calibration ties to it: null hypothesis is that the mean of each micrograph, given the ones before
it, lies within a tolerance of that share (betting on bounded means: Waudby-Smith, Ramdas, JRSS B 86,
2024). Metadata are compared with mean and deviation in training: by Chebyshev's inequality at most 1/16
of any distribution lies beyond four deviations.

**When to tell.** All three give *bets*: numbers that are never negative and whose mean is at most one
while nothing has changed. A Shiryaev-Roberts sum of their products, averaged over a few bets, is an
e-detector: an alarm when it reaches c, it gives in the mean not less than c micrographs between false alarms
(Shin, Ramdas, Rinaldo, arXiv:2203.03532). With k channels each alarms at k·c, so that all together
keep the rate, whatever their dependence. So **fewer than one false alarm in ``run_length`` micrographs
in the mean**, at any time, with no calibration. An alarm also needs a change that matters to a person.

What the guarantee does not cover: grid squares that differ are a change, and raise an alarm.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

#: Micrographs before the first comparison with the session's own past.
WARM_UP = 30
#: Strengths of the bets on ranks, both directions; two would be the most that is never negative.
_RANK_BETS = np.array([-1.9, -1.0, -0.5, 0.5, 1.0, 1.9])
_FRACTIONS = np.array([0.2, 0.5, 0.9])
#: Beyond four deviations lies at most a sixteenth of any distribution.
_DEVIATIONS = 4.0
_BEYOND = 1 / _DEVIATIONS**2


class MicrographSummary(Protocol):
    """What is used of a micrograph: `ledger.Micrograph`, or its row."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def kept(self) -> int: ...  # noqa: D102
    @property
    def discarded(self) -> int: ...  # noqa: D102
    @property
    def review(self) -> int: ...  # noqa: D102
    @property
    def score(self) -> float | None: ...  # noqa: D102
    @property
    def defocus(self) -> float | None: ...  # noqa: D102
    @property
    def ctf_resolution(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Alarm:
    """A change that was established.

    Attributes:
        channel: what changed.
        against: ``past`` or ``training``.
        before: its mean before, or in training.
        after: its mean since.
        since: the micrograph with which it seems to have begun.
        micrographs: how many there were since.
        reason: in words.
    """

    channel: str
    against: str
    before: float
    after: float
    since: str
    micrographs: int
    reason: str


@dataclass(slots=True)
class Detector:
    """A Shiryaev-Roberts e-detector over several bets.

    Args:
        at: where it tells.
    """

    at: float
    _sums: np.ndarray = field(default_factory=lambda: np.zeros(1))
    _products: np.ndarray = field(default_factory=lambda: np.ones(1))
    _begun: np.ndarray = field(default_factory=lambda: np.zeros(1, int))
    _steps: int = 0

    def add(self, bets: np.ndarray) -> bool:
        """Take one number's bets; True where the sum has reached its mark."""
        self._sums = np.minimum((self._sums + 1.0) * bets, 1e200)
        self._steps += 1
        self._products = np.minimum(self._products * bets, 1e200)
        low = self._products <= 1.0
        self._products = np.where(low, 1.0, self._products)
        self._begun = np.where(low, self._steps, self._begun)
        return bool(self._sums.mean() >= self.at)

    @property
    def begun(self) -> int:
        """How many numbers came before the change, as the bet that gained most dates it."""
        return int(np.atleast_1d(self._begun)[int(np.argmax(self._products))])


@dataclass(slots=True)
class _Channel:
    """One number of each micrograph, and what it is compared with."""

    name: str
    unit: str
    value: Callable[[MicrographSummary], float | None]
    least: float  # the smallest difference that matters
    relative: bool = False  # whether that is a fraction of the value before
    training: float | None = None  # mean, where it is compared with training
    bets: Callable[[float], np.ndarray] | None = None
    detector: Detector = field(default_factory=lambda: Detector(math.inf))
    values: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    ranked: list[float] = field(default_factory=list)

    def restart(self, at: float, keep: int = 0) -> None:
        """Forget all but the last ``keep`` numbers."""
        self.values = self.values[len(self.values) - keep :]
        self.names = self.names[len(self.names) - keep :]
        self.ranked = sorted(self.values)
        self.detector = Detector(at)


class Drift:
    """Follows one session, micrograph by micrograph in the order in which they were judged.

    Args:
        baseline: what the ensemble says of its training: ``prevalence`` (share of keep), ``features``
            ({name: [mean, deviation]} of ``defocus``, µm, and ``ctf_max_resolution``, log Å).
        run_length: micrographs in the mean between false alarms, at least.
        tolerance: how far from the share of keep in training is no alarm.
    """

    def __init__(
        self,
        baseline: Mapping[str, object] | None = None,
        *,
        run_length: float = 20_000.0,
        tolerance: float = 0.25,
    ) -> None:
        self._channels = _channels(baseline or {}, tolerance)
        self._at = run_length * len(self._channels)
        for channel in self._channels:
            channel.restart(self._at)

    def add(self, micrograph: MicrographSummary) -> list[Alarm]:
        """Take the next micrograph; the alarms that it raises."""
        alarms = []
        for channel in self._channels:
            value = channel.value(micrograph)
            if value is None or not math.isfinite(value):
                continue
            alarm = self._add(channel, value, micrograph.name)
            if alarm is not None:
                alarms.append(alarm)
        return alarms

    def _add(self, channel: _Channel, value: float, name: str) -> Alarm | None:
        bets = channel.bets(value) if channel.bets else _rank_bets(channel.ranked, value, name)
        channel.values.append(value)
        channel.names.append(name)
        insort(channel.ranked, value)
        if channel.bets is None and len(channel.values) <= WARM_UP:
            return None
        if not channel.detector.add(bets):
            return None
        warm = WARM_UP if channel.bets is None else 0
        begun = min(warm + channel.detector.begun, len(channel.values) - 1)
        after = float(np.mean(channel.values[begun:]))
        before = channel.training
        if before is None:
            before = float(np.mean(channel.values[:begun])) if begun else after
        least = channel.least * (abs(before) if channel.relative else 1.0)
        if abs(after - before) < least:
            return None
        count = len(channel.values) - begun
        alarm = Alarm(
            channel=channel.name,
            against="past" if channel.training is None else "training",
            before=before,
            after=after,
            since=channel.names[begun],
            micrographs=count,
            reason=_words(channel, before, after, count),
        )
        channel.restart(self._at, keep=count)
        return alarm


def _rank_bets(ranked: Sequence[float], value: float, name: str) -> np.ndarray:
    """Bets on the rank of a number among those before it; ties are broken at random, by its name."""
    below, upto = bisect_left(ranked, value), bisect_right(ranked, value)
    random = hashlib.blake2b(name.encode(), digest_size=8).digest()
    uniform = (int.from_bytes(random) + 0.5) / 2**64
    p = (below + uniform * (upto - below + 1)) / (len(ranked) + 1)
    return 1.0 + _RANK_BETS * (p - 0.5)


def _share_bets(low: float, high: float) -> Callable[[float], np.ndarray]:
    """Bets on a number in [0, 1] whose mean lies in [low, high]."""

    def bets(value: float) -> np.ndarray:
        value = min(1.0, max(0.0, value))
        down = 1 + _FRACTIONS / max(1e-9, 1 - low) * (low - value) if low > 0 else _FRACTIONS * 0
        up = 1 + _FRACTIONS / max(1e-9, high) * (value - high) if high < 1 else _FRACTIONS * 0
        return np.concatenate([down, up])

    return bets


def _range_bets(
    mean: float, deviation: float, scale: Callable[[float], float]
) -> Callable[[float], np.ndarray]:
    """Bets on lying beyond four deviations on this scale."""

    def bets(value: float) -> np.ndarray:
        beyond = value <= 0 or abs(scale(value) - mean) > _DEVIATIONS * deviation
        return 1 + _FRACTIONS / _BEYOND * (float(beyond) - _BEYOND)

    return bets


def _keep_rate(one: MicrographSummary) -> float | None:
    judged = one.kept + one.discarded + one.review
    return one.kept / judged if judged else None


def _review_share(one: MicrographSummary) -> float | None:
    judged = one.kept + one.discarded + one.review
    return one.review / judged if judged else None


def _channels(baseline: Mapping[str, object], tolerance: float) -> list[_Channel]:
    channels = [
        _Channel("keep rate", "%", _keep_rate, 0.05),
        _Channel("mean score", "", lambda one: one.score, 0.05),
        _Channel("share sent to review", "%", _review_share, 0.05),
        _Channel("CTF resolution", "Å", lambda one: one.ctf_resolution, 0.1, relative=True),
        _Channel("defocus", "µm", lambda one: one.defocus, 0.2, relative=True),
    ]
    share = baseline.get("prevalence")
    if isinstance(share, int | float) and 0 <= share <= 1:
        bets = _share_bets(share - tolerance, share + tolerance)
        channels += [
            _Channel(name, unit, value, tolerance, training=float(share), bets=bets)
            for name, unit, value in (
                ("keep rate", "%", _keep_rate),
                ("mean score", "", lambda one: one.score),
            )
        ]
    features = baseline.get("features")
    for name, unit, feature, value, log in (
        ("defocus", "µm", "defocus", lambda one: one.defocus, False),
        ("CTF resolution", "Å", "ctf_max_resolution", lambda one: one.ctf_resolution, True),
    ):
        known = features.get(feature) if isinstance(features, Mapping) else None
        if isinstance(known, Sequence) and len(known) == 2 and float(known[1]) > 0:
            mean, deviation = float(known[0]), float(known[1])
            channels.append(
                _Channel(
                    name,
                    unit,
                    value,
                    0.0,
                    training=math.exp(mean) if log else mean,
                    bets=_range_bets(mean, deviation, math.log if log else float),
                )
            )
    return channels


def _words(channel: _Channel, before: float, after: float, micrographs: int) -> str:
    def text(value: float) -> str:
        return (
            f"{100 * value:.0f}%" if channel.unit == "%" else f"{value:.3g} {channel.unit}".strip()
        )

    now = f"the {channel.name} of the last {micrographs:,} micrographs is {text(after)}"
    if channel.training is None:
        return f"{now}; before, in this session, it was {text(before)}"
    if channel.least:
        return f"{now}; the share of keep in the ensemble's training was {text(before)}"
    return f"{now}; in the ensemble's training it was {text(before)}, and seldom so far from it"
