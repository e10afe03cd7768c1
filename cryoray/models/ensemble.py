"""The ensemble: three members, their calibration and one threshold, in a folder that executes nothing.

A fourth network may name the likeliest reason of what they discard. It has no part in any verdict.
Where it has heads, it can judge within a project by that project's profile (`Ensemble.with_profile`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from cryoray.boosting import promise
from cryoray.boosting.calibration import Platt
from cryoray.boosting.voting import decide, disagree, score
from cryoray.errors import EnsembleError, InternalError
from cryoray.formats.files import replacing
from cryoray.formats.names import CARD, TRAINING
from cryoray.models.context import HeadConfig, Heads, InContext
from cryoray.models.networks import Network, NetworkConfig, embedded, logits
from cryoray.models.profile import Profile, profile_of
from cryoray.policies import Policy, parsed
from cryoray.records import MEMBERS, VERDICTS, Kind, Reason, Verdicts
from cryoray.settings import PreparationSettings

MANIFEST = "ensemble.json"
#: Beside it: each image's scores by networks that had not seen its group.
HELD_OUT = "held-out.parquet"
_REASONS, _CONTEXT = "reasons", "context"
#: A line above every probability: nothing is kept.
_ABOVE_ALL = 2.0
#: Images of each from which two profiles can be told apart.
TELLING = 100
_DIGEST, _PIECE = re.compile(r"[0-9a-f]{64}"), 16 << 20
#: Bytes of `ensemble.json`: one of a hundred thousand training groups has some ten million.
_LARGEST_MANIFEST = 64 << 20


#: What d1, d2 and d3 see in some images [n, C], and their own logits [n].
Embeddings = tuple[
    tuple[torch.Tensor, torch.Tensor],
    tuple[torch.Tensor, torch.Tensor],
    tuple[torch.Tensor, torch.Tensor],
]


class Calibration(BaseModel):
    """Platt's sigmoid of one member."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slope: float = Field(gt=0)
    offset: float


class DrawnLine(BaseModel):
    """Where a policy draws the line, and what each project lost there (`boosting.operating_point.Line`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    threshold: float
    review: tuple[float, float]
    operating_point: dict[str, object]
    lost: dict[str, float] = {}
    junk_kept: float = 0.0


class Reasons(BaseModel):
    """The network that names why an image was discarded: its answers in order, and what it looks like."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[Reason, ...] = Field(min_length=2)
    network: NetworkConfig


class Context(BaseModel):
    """What an ensemble that takes a profile has beside its heads: how it judges within a project.

    Attributes:
        head: what the heads of its members look like.
        profiles: how many profiles of training it keeps, compared along so many ``directions``.
        shift: directions from which follows how far a project's scores are moved; 0: none is.
        familiar: distance from those beyond which a profile is unlike any, and is not used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    head: HeadConfig
    profiles: int = Field(ge=1)
    directions: int = Field(ge=1)
    # Left out where there is none, so that digests of ensembles without stay what they were.
    shift: int = Field(0, ge=0, exclude_if=lambda value: not value)
    familiar: float = Field(ge=0)
    calibration: tuple[Calibration, Calibration, Calibration]
    threshold: float
    review: tuple[float, float]
    operating_point: dict[str, object]
    operating_points: dict[Policy, DrawnLine]
    expectation: tuple[tuple[float, float, float], ...]


#: What a context has of its own instead of what stands beside it in the manifest.
LINES = (
    "calibration",
    "threshold",
    "review",
    "operating_point",
    "operating_points",
    "expectation",
)


class Manifest(BaseModel):
    """`ensemble.json`: what an ensemble is, all but its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Kind
    digest: str = ""
    members: tuple[NetworkConfig, NetworkConfig, NetworkConfig]
    features: tuple[str, ...]
    preparation: PreparationSettings
    calibration: tuple[Calibration, Calibration, Calibration]
    threshold: float
    review: tuple[float, float]
    operating_point: dict[str, object]
    prevalence: float
    split_by: Literal["project", "micrograph"]
    training_groups: tuple[str, ...]
    calibration_groups: tuple[str, ...]
    # Left out where there is none, so that digests of ensembles without stay what they were.
    reasons: Reasons | None = Field(None, exclude_if=lambda value: value is None)
    context: Context | None = Field(None, exclude_if=lambda value: value is None)
    # The line of each policy; `threshold`, `review` and `operating_point` are of the one that stands.
    operating_points: dict[Policy, DrawnLine] = Field({}, exclude_if=lambda value: not value)
    # (threshold, good images lost, junk kept), means over projects (`operating_point.expectation`).
    expectation: tuple[tuple[float, float, float], ...] = Field(
        (), exclude_if=lambda value: not value
    )

    @property
    def behind(self) -> str:
        """What stands behind the line as it is drawn, in words."""
        known = self.operating_points.get(cast(Policy, self.operating_point.get("policy")))
        same = known is not None and known.threshold == self.threshold
        return promise.in_words(self.operating_point, known.lost if known and same else None)


class Ensemble:
    """Three calibrated members and the threshold that serves vote, review band and ROC.

    Args:
        manifest: what `ensemble.json` holds; its digest is computed when saving.
        networks: d1, d2, d3 with their weights.
        path: the folder it was loaded from.
        reasons: the network that ``manifest.reasons`` describes, where it describes one.
        heads: those that ``manifest.context`` describes, where it describes some.
        profile: of the project in which it judges; see `with_profile`.
    """

    def __init__(
        self,
        manifest: Manifest,
        networks: tuple[Network, Network, Network],
        path: Path | None = None,
        reasons: Network | None = None,
        heads: Heads | None = None,
        profile: Profile | None = None,
    ) -> None:
        if (reasons is None) != (manifest.reasons is None):
            raise InternalError("an ensemble's network of reasons and its description go together")
        if (heads is None) != (manifest.context is None):
            raise InternalError("an ensemble's heads and their description go together")
        self.manifest = manifest
        self.networks = networks
        self.path = path
        self.reasons = reasons
        self.heads = heads
        self.profile = profile
        self._platt = tuple(Platt(c.slope, c.offset) for c in manifest.calibration)
        self._members: tuple[torch.nn.Module, ...] = networks
        self.familiar = True
        if heads is not None and profile is not None and manifest.context is not None:
            project = profile.moments()
            self.familiar = bool(heads.distance(project) <= manifest.context.familiar)
            if self.familiar:
                self._members = tuple(
                    InContext(network, heads.head(number), project[number])
                    for number, network in enumerate(networks)
                )
        for network in self._all:
            network.eval()

    @property
    def _all(self) -> tuple[torch.nn.Module, ...]:
        others = (self.reasons, self.heads)
        return (*self.networks, *(network for network in others if network is not None))

    kind = property(lambda self: self.manifest.kind)
    digest = property(lambda self: self.manifest.digest)
    threshold = property(lambda self: self.manifest.threshold)
    review = property(lambda self: self.manifest.review)
    features = property(lambda self: self.manifest.features)
    #: How the line is drawn: `expected`, `each`, `threshold=X` or `share=X`.
    policy = property(lambda self: str(self.manifest.operating_point.get("policy", "each")))

    @cached_property
    def preparation(self) -> PreparationSettings:
        """How images are prepared for it, with its own features."""
        return self.manifest.preparation.model_copy(update={"features": self.features})

    def without_review(self) -> Ensemble:
        """The same judges with no review band: their threshold decides about every image."""
        return self.with_line(self.threshold, (self.threshold, self.threshold))

    def with_line(
        self, threshold: float, review: tuple[float, float], policy: str | None = None
    ) -> Ensemble:
        """The same judges with another threshold and review band; by another policy where one is named."""
        update: dict[str, object] = {"threshold": threshold, "review": review}
        if policy is not None:
            update["operating_point"] = {"policy": policy, "threshold": threshold}
        return self._as(self.manifest.model_copy(update=update), self.path)

    @property
    def awaits_share(self) -> bool:
        """Whether a share of a source is to be kept whose line is not known yet (`models.decide`)."""
        return self.threshold == _ABOVE_ALL

    def with_policy(self, policy: str | None) -> Ensemble:
        """The same judges with the line of a policy; None: with their own.

        A threshold or a share that a person gives leaves nothing under review. With a share the line is only
        known when a whole source has been judged (`models.decide`): until then d3 is asked about every image,
        and all are discarded.

        Raises:
            EnsembleError: it was made before there was this policy.
            SettingsError: there is none such.
        """
        if policy is None or policy == self.policy:
            return self
        words = parsed(policy)
        update: dict[str, object]
        if words.number is not None:
            line = float(np.float32(words.number)) if words.name == "threshold" else _ABOVE_ALL
            point = {"policy": policy, "method": "given by a person", "threshold": line}
            update = {"threshold": line, "review": (line, line), "operating_point": point}
        elif (known := self.manifest.operating_points.get(cast(Policy, words.name))) is not None:
            update = {
                "threshold": known.threshold,
                "review": known.review,
                "operating_point": known.operating_point,
            }
        else:
            raise EnsembleError(
                f"the ensemble has no policy {policy}: it was made when there was only {self.policy}",
                file=self.path,
                remedy=f"give --policy {self.policy}, threshold=X or share=X, or train it again",
            )
        manifest = self.manifest.model_copy(update=update)
        return self._as(manifest, self.path)

    def _as(self, manifest: Manifest, path: Path | None) -> Ensemble:
        return Ensemble(manifest, self.networks, path, self.reasons, self.heads, self.profile)

    @property
    def takes_profile(self) -> bool:
        """Whether it has heads, and so can judge by a project's profile."""
        return self.heads is not None

    @property
    def uses_profile(self) -> bool:
        """Whether it judges by a profile: it was given one, and one that is familiar."""
        return self._members is not self.networks

    def with_profile(self, profile: Profile | None) -> Ensemble:
        """The same judge within a project: scores, threshold and review band are those of the context.

        A profile that is unlike any in training is not used: then the context-free score stands, and
        `about` says so. Without heads, or without a profile, it is this judge as it is.

        Raises:
            EnsembleError: the profile is of another ensemble.
        """
        if self.heads is None or profile is None:
            return self
        sizes = [len(member.mean) for member in profile.members]
        if profile.ensemble != self.digest or sizes != [
            len(h.mean) for h in map(self.heads.head, range(3))
        ]:
            raise EnsembleError(
                f"the profile {profile.digest[:12]} is of the ensemble {profile.ensemble[:12]}, not of "
                f"{self.digest[:12]}",
                remedy="classify without --profile, which makes one with this ensemble",
            )
        inside = Ensemble(
            self.manifest, self.networks, self.path, self.reasons, self.heads, profile
        )
        if not inside.familiar or self.manifest.context is None:
            return inside
        lines = {name: getattr(self.manifest.context, name) for name in LINES}
        lines["calibration"] = _moved(lines["calibration"], -self.heads.moved(profile.moments()))
        inside = inside._as(self.manifest.model_copy(update=lines), self.path).with_policy(
            self.policy
        )
        return (
            inside.without_review() if self.review == (self.threshold, self.threshold) else inside
        )

    def unlike(self, one: Profile, other: Profile) -> bool:
        """Whether two profiles look like those of different projects; of few images nobody can tell.

        They do where they are farther from each other than a project may be from those of training. A part
        of a project with a hundred images and more is nearer to the whole; a similar protein may be, too.
        """
        if self.heads is None or self.manifest.context is None:
            return False
        if min(one.images, other.images) < TELLING:
            return False
        apart = self.heads.apart(one.moments(), other.moments())
        return apart > self.manifest.context.familiar

    def with_lines(self, lines: Manifest, inside: Ensemble) -> Manifest:
        """This ensemble's manifest with the lines of another one.

        Args:
            lines: whose calibration, threshold, review and operating points are taken.
            inside: this judge with the profile of the project that they are of, or with none.
        """
        if inside.profile is None or not inside.familiar or self.manifest.context is None:
            return lines
        taken = {name: getattr(lines, name) for name in LINES}
        if self.heads is not None:  # which will be moved again
            moved = self.heads.moved(inside.profile.moments())
            taken["calibration"] = _moved(taken["calibration"], moved)
        others = {name: getattr(self.manifest, name) for name in LINES}
        context = self.manifest.context.model_copy(update=taken)
        return lines.model_copy(update={**others, "context": context})

    def embed(self, images: np.ndarray, features: np.ndarray) -> Embeddings:
        """What the members see in prepared images, and their own logits; see `judge`."""
        x, f = torch.tensor(images, dtype=torch.float32), torch.tensor(features)
        f = f.reshape(len(x), len(self.features)).float()
        d1, d2, d3 = (embedded(network, x, f) for network in self.networks)
        return d1, d2, d3

    def profiled(self, seen: Embeddings) -> Profile:
        """The profile of a project of which these images are; see `models.profile.sampled`."""
        return profile_of(self.digest, seen)

    def to(self, device: torch.device | str | None = None) -> Ensemble:
        """Move the members to a device, None for a GPU where there is one; returns self."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # TF32 has ten bits, too few for scores that agree within 1e-4 between batches and devices.
        torch.backends.cudnn.allow_tf32 = False
        for network in self._all:
            network.to(device)
        return self

    def judge(
        self, images: np.ndarray, features: np.ndarray, *, everyone: bool = False
    ) -> Verdicts:
        """Judge prepared images, and decide by the ensemble's own line; d3 is asked where d1 and d2 disagree.

        Args:
            images: float32 [n, box, box], prepared with ``self.preparation``.
            features: float32 [n, F], columns as ``self.features``, NaN where missing.
            everyone: ask d3 everywhere, as ROC and calibration need it: ``score`` is then the median of
                three everywhere. Verdicts are those that deployment gives, and no forced decision
                changes.

        Returns:
            verdicts on rows 0 to n - 1.
        """
        x = torch.tensor(images, dtype=torch.float32)
        f = torch.tensor(features, dtype=torch.float32).reshape(len(x), len(self.features))
        d1, d2 = (self._probability(member, x, f) for member in (0, 1))
        asked = disagree(d1, d2, self.threshold)
        d3 = np.full(len(x), np.nan, np.float32)
        # Where a person gives a share, whom to ask is known when the whole source has been judged.
        if self.awaits_share:
            asked = np.ones_like(asked)
        ask = np.ones_like(asked) if everyone else asked
        if ask.any():
            where = torch.from_numpy(np.flatnonzero(ask))
            d3[ask] = self._probability(2, x[where], f[where])
        deployed = score(d1, d2, np.where(asked, d3, np.float32(np.nan)))
        verdict = decide(deployed, self.review)
        columns = {
            "score": score(d1, d2, d3) if everyone else deployed,
            "verdict": verdict,
            "d1": d1,
            "d2": d2,
            "d3": d3,
            "reason": self._reason(x, verdict == VERDICTS[1]),
        }
        return Verdicts.of(np.arange(len(x)), columns, about=self.about)

    @property
    def about(self) -> dict[str, str]:
        """Who judges and where the line is, as tables of verdicts say it."""
        who = {
            "ensemble": self.digest,
            "policy": self.policy,
            "threshold": repr(float(self.threshold)),
            "review": " ".join(repr(float(end)) for end in self.review),
        }
        if self.profile is not None:
            who["profile"] = self.profile.digest
            if not self.familiar:  # unlike any project of training: its profile was not used
                who["unfamiliar"] = "yes"
        return who

    def _reason(self, images: torch.Tensor, discarded: np.ndarray) -> np.ndarray:
        """The likeliest reason of each image discarded, object [n], None for the others."""
        reason = np.full(len(images), None, object)
        if self.reasons is not None and self.manifest.reasons is not None and discarded.any():
            where = torch.from_numpy(np.flatnonzero(discarded))
            nothing = torch.empty((len(where), 0))
            likeliest = logits(self.reasons, images[where], nothing).argmax(1).numpy()
            reason[discarded] = np.array(self.manifest.reasons.labels, object)[likeliest]
        return reason

    def logits(self, images: np.ndarray, features: np.ndarray) -> np.ndarray:
        """What each member says before it is calibrated, float32 [n, 3]; see `judge`."""
        x, f = torch.tensor(images, dtype=torch.float32), torch.tensor(features)
        return np.stack([logits(network, x, f).numpy() for network in self._members], 1)

    def _probability(self, member: int, images: torch.Tensor, features: torch.Tensor) -> np.ndarray:
        return self._platt[member](logits(self._members[member], images, features).numpy())

    def save(self, path: Path, card: str) -> Ensemble:
        """Write the folder: weights, manifest with its digest, and the card; returns what was saved.

        Args:
            path: a folder that is made, or filled.
            card: Markdown that tells a person what this ensemble is.
        """
        path.mkdir(parents=True, exist_ok=True)
        for name, network in zip(_files(self.manifest), self._all, strict=True):
            save_weights(path / f"{name}.safetensors", network.state_dict())
        manifest = self.manifest.model_copy(update={"digest": _digest(path, self.manifest)})
        for name, text in (
            (CARD, card),
            (MANIFEST, manifest.model_dump_json(indent=2) + "\n"),
        ):
            with replacing(path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return self._as(manifest, path)

    def with_reasons(self, labels: tuple[Reason, ...], network: Network) -> Ensemble:
        """The same judge, which also names the likeliest of these reasons for what it discards.

        Args:
            labels: what the network's outputs stand for.
            network: takes images alone.
        """
        reasons = Reasons(labels=labels, network=network.config)
        manifest = self.manifest.model_copy(update={"reasons": reasons})
        return Ensemble(manifest, self.networks, self.path, network, self.heads, self.profile)

    def with_context(self, context: Context, heads: Heads) -> Ensemble:
        """The same judge, which can also judge within a project."""
        manifest = self.manifest.model_copy(update={"context": context})
        return Ensemble(manifest, self.networks, self.path, self.reasons, heads)

    @classmethod
    def load(cls, path: Path, *, review: bool = True, policy: str | None = None) -> Ensemble:
        """Read an ensemble's folder; executes nothing of it.

        Args:
            path: the folder.
            review: False: as `without_review` has it.
            policy: as `with_policy` has it.

        Raises:
            EnsembleError: a file is missing, damaged, of an unknown format, or not the one that the
                digest names; or it does not know the policy.
        """
        path = Path(path).absolute()
        try:
            with (path / MANIFEST).open(encoding="utf-8") as file:
                manifest = Manifest.model_validate_json(file.read(_LARGEST_MANIFEST))
        except FileNotFoundError:
            raise EnsembleError(
                "this is not an ensemble: it has no ensemble.json",
                file=path,
                remedy="name a folder that `cryoray train` wrote",
            ) from None
        except (ValidationError, UnicodeDecodeError) as error:
            raise EnsembleError(
                f"ensemble.json is not readable ({_first_line(error)})",
                file=path / MANIFEST,
                remedy="train it again, or use the cryoray version that wrote it",
            ) from error
        # Before anything is made after its description, which may ask for more than there is.
        if path.name != manifest.digest and _DIGEST.fullmatch(path.name):
            raise EnsembleError(
                f"holds another ensemble than its name says, {manifest.digest}",
                file=path,
                remedy="promote it again",
            )
        with torch.device("meta"):  # shapes alone: memory is that of the files
            d1, d2, d3 = (Network(config, len(manifest.features)) for config in manifest.members)
            reasons = heads = None
            if (why := manifest.reasons) is not None:
                reasons = Network(why.network, 0, len(why.labels))
            if (of := manifest.context) is not None:
                seen = (d1.channels, d2.channels, d3.channels)
                heads = Heads(seen, of.head, of.profiles, of.directions, of.shift)
        networks = [each for each in (d1, d2, d3, reasons, heads) if each is not None]
        for name, network in zip(_files(manifest), networks, strict=True):
            try:
                network.load_state_dict(load_file(path / f"{name}.safetensors"), assign=True)
            except (OSError, SafetensorError, RuntimeError) as error:
                raise EnsembleError(
                    f"the weights of {name} are missing or damaged",
                    file=path / f"{name}.safetensors",
                    remedy="copy the ensemble again, or train it again",
                ) from error
        if _digest(path, manifest) != manifest.digest:
            raise EnsembleError(
                "its files are not the ones that its digest names",
                file=path,
                remedy="copy the ensemble again, or train it again",
            )
        ensemble = cls(manifest, (d1, d2, d3), path, reasons, heads).with_policy(policy)
        return ensemble if review else ensemble.without_review()

    def check_kind(self, kind: Kind, source: Path) -> None:
        """Refuse to judge what this ensemble was not trained on.

        Raises:
            EnsembleError: the source holds another kind.
        """
        if kind != self.kind:
            raise EnsembleError(
                f"the ensemble {self.path} judges {self.kind} images, this holds {kind} images",
                file=source,
                remedy=f"give an ensemble of kind {kind}, or another --kind",
            )


def _moved(members: Sequence[Calibration], by: float) -> tuple[Calibration, ...]:
    """Calibrations whose log-odds are so much higher."""
    return tuple(c.model_copy(update={"offset": c.offset + by}) for c in members)


def _first_line(error: ValidationError | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


def _files(manifest: Manifest) -> tuple[str, ...]:
    """Names of the weight files, without suffix."""
    others = {_REASONS: manifest.reasons, _CONTEXT: manifest.context}
    return (*MEMBERS, *(name for name, described in others.items() if described is not None))


def _digest(path: Path, manifest: Manifest) -> str:
    """SHA-256 over the manifest without its digest and over the weight files."""
    digest = hashlib.sha256(manifest.model_copy(update={"digest": ""}).model_dump_json().encode())
    for name in _files(manifest):
        with (path / f"{name}.safetensors").open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    return digest.hexdigest()


def save_weights(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write a network's weights as safetensors, by a temporary name."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        # Not `save_file`, which says of a full disk what no `except OSError` hears.
        temporary.write_bytes(save(plain))


def training_record(path: Path) -> Mapping[str, Any]:
    """`training.json` of an ensemble, {} where it has none: curves over epochs, bound table, reasons."""
    file = path / TRAINING
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
