"""The three networks: small CNNs for images at 5% signal that differ in depth, width and activation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Lock
from typing import Annotated, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

Made = TypeVar("Made")
Activation = Literal["relu", "silu", "gelu"]

#: Images that a network sees together, for their results to stay in a core's cache; a GPU wants more.
_BATCH, _BATCH_GPU = 64, 1024

_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
}

#: Rings of the last feature map that are pooled apart, in fractions of the box's half side. A particle
#: sits in the middle and its neighbours do not; rings tell the two apart and do not care about rotation.
_RINGS = ((0.0, 0.4), (0.4, 0.75), (0.75, 1.5))
#: A feature whose standard deviation in training is below this is the same for all.
_CONSTANT = 1e-3
_DRAWING = Lock()


class NetworkConfig(BaseModel):
    """What a network looks like; small and frozen, so that a search can vary it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(
        16, ge=8, le=1024, multiple_of=8, description="channels after the stem; doubles per stage"
    )
    blocks: tuple[Annotated[int, Field(ge=0, le=64)], ...] = Field(
        (1, 2), max_length=8, description="residual blocks at 1/4 of the box, 1/8, …"
    )
    activation: Activation = "silu"
    stem: int = Field(5, ge=3, le=63, description="side of the first kernel, px")
    dilation: int = Field(1, ge=1, le=64, description="of the last stage: a larger receptive field")
    head: int = Field(64, ge=8, le=65536, description="width of the fused layer")
    dropout: float = Field(0.2, ge=0, lt=1)


#: d1, d2 and d3: one of middling depth, a deeper and narrower one, a wide and shallow one that sees far.
DEFAULT_MEMBERS = (
    NetworkConfig(width=16, blocks=(1, 2), activation="silu"),
    NetworkConfig(width=8, blocks=(2, 3, 2), activation="gelu", stem=3),
    NetworkConfig(width=24, blocks=(1, 1), activation="relu", stem=7, dilation=2),
)


class _Block(nn.Module):
    """Two 3×3 convolutions around a shortcut. Group norm: it is the same for any batch and worker."""

    def __init__(self, channels: int, activation: Activation, dilation: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False),
            nn.GroupNorm(8, channels),
            _ACTIVATIONS[activation](),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, channels),
        )
        last = self.body[-1]
        assert isinstance(last, nn.GroupNorm)
        nn.init.zeros_(
            last.weight
        )  # every block starts as the identity: deep members train like shallow

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


#: Which reason an image was discarded for: it sees the image alone, and only what was discarded.
REASONS_NETWORK = NetworkConfig(width=16, blocks=(1, 1), activation="silu")


class Network(nn.Module):
    """One member: image and metadata in, one logit out; or one logit for each of several answers.

    The image goes through a strided stem and residual stages, each entered by average pooling
    (anti-aliased), is pooled in rings, and joins the metadata late. A missing feature is zero after
    standardisation and one in the mask, so that a file without a column is still judged.

    Args:
        config: what it looks like.
        features: how many metadata features there are; may be none.
        outputs: 1 for the logit of keep, else how many answers there are to choose from.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: NetworkConfig, features: int, outputs: int = 1) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, config.stem, stride=2, padding=config.stem // 2, bias=False),
            nn.GroupNorm(8, width),
            _ACTIVATIONS[config.activation](),
        )
        stages: list[nn.Module] = []
        for stage, blocks in enumerate(config.blocks):
            dilation = config.dilation if stage == len(config.blocks) - 1 else 1
            stages += [nn.AvgPool2d(2, ceil_mode=True), nn.Conv2d(width, 2 * width, 1)]
            width *= 2
            stages += [_Block(width, config.activation, dilation) for _ in range(blocks)]
        self.stages = nn.Sequential(*stages, _ACTIVATIONS[config.activation]())
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))
        self.metadata = (
            nn.Sequential(nn.Linear(2 * features, 24), _ACTIVATIONS[config.activation]())
            if features
            else None
        )
        #: Values that `see` gives.
        self.channels = len(_RINGS) * width
        self.head = nn.Sequential(
            nn.Linear(self.channels + (24 if features else 0), config.head),
            _ACTIVATIONS[config.activation](),
        )
        self.verdict = nn.Linear(config.head, outputs)

    def forward(self, images: Tensor, features: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Logits of keep, or of each answer.

        Args:
            images: float32 [n, box, box], prepared.
            features: float32 [n, F], NaN where missing.
            dropout: float32 [n, config.head], factors of the fused layer while training. They come
                from the caller, who draws them alike on every worker.

        Returns:
            float32 [n]; [n, outputs] where there are several.
        """
        return self.say(self.see(images), features, dropout)

    def see(self, images: Tensor) -> Tensor:
        """What the image alone tells, float32 [n, C]: feature maps of images [n, box, box], by ring."""
        maps: Tensor = self.stages(self.stem(images[:, None]))
        return (maps.flatten(2) @ _ring_weights(maps)).flatten(1)

    def say(self, seen: Tensor, features: Tensor, dropout: Tensor | None = None) -> Tensor:
        """Logits of keep of what was seen [n, C] and of metadata; see `forward`."""
        fused = seen
        if self.metadata is not None:
            missing = torch.isnan(features) | torch.isinf(self.feature_std)
            standard = ((features - self.feature_mean) / self.feature_std).clamp(-5, 5)
            standard = torch.where(missing, torch.zeros_like(standard), standard)
            fused = torch.cat([fused, self.metadata(torch.cat([standard, missing.float()], 1))], 1)
        fused = self.head(fused)
        logit: Tensor = self.verdict(fused if dropout is None else fused * dropout)
        return logit[:, 0] if logit.shape[1] == 1 else logit

    def standardise(self, features: Tensor) -> None:
        """Learn mean and deviation of each feature, [n, F] with NaN where missing, from training data.

        One that is missing or the same in all of these said nothing, so what it says of another
        image would mean nothing: its deviation is infinite, and it counts as missing.
        """
        seen = ~torch.isnan(features)
        count = seen.sum(0).clamp(min=1)
        mean = torch.where(seen, features, 0.0).sum(0) / count
        variance = torch.where(seen, (features - mean) ** 2, 0.0).sum(0) / count
        self.feature_mean.copy_(mean)
        deviation = variance.sqrt()
        self.feature_std.copy_(torch.where(deviation < _CONSTANT, torch.inf, deviation))


def _ring_weights(maps: Tensor) -> Tensor:
    """Weights [h·w, rings] that average a feature map [n, c, h, w] over each ring."""
    height, width = maps.shape[-2:]
    y = (torch.arange(height, device=maps.device) + 0.5) / height * 2 - 1
    x = (torch.arange(width, device=maps.device) + 0.5) / width * 2 - 1
    radius = torch.hypot(y[:, None], x[None, :]).flatten()
    rings = torch.stack([(radius >= low) & (radius < high) for low, high in _RINGS], 1).to(
        maps.dtype
    )
    return rings / rings.sum(0).clamp(min=1)


def build(config: NetworkConfig, features: int, seed: int, outputs: int = 1) -> Network:
    """A network with weights that are a function of ``seed`` alone."""
    return seeded(lambda: Network(config, features, outputs), seed)


def seeded(make: Callable[[], Made], seed: int) -> Made:
    """What ``make`` makes, with weights that are a function of ``seed`` alone."""
    # Layers draw from the process's one generator, and several fits may begin at once.
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def parameters(network: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@torch.inference_mode()
def logits(network: nn.Module, images: Tensor, features: Tensor) -> Tensor:
    """Logits of prepared images, as `Network.forward`, on its device; returned on the CPU.

    A batch always holds as many images, blanks where there are fewer: a batch of another size may be added
    up in another order, so an image's logit is the same to the last bit, whatever images are beside it.
    """
    parts = [network(some, known)[:n] for some, known, n in _batches(network, images, features)]
    return torch.cat([part.float().cpu() for part in parts]) if parts else torch.empty(0)


@torch.inference_mode()
def embedded(network: Network, images: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """What a member sees, [n, C], and its logits, [n], in batches as `logits` has them."""
    seen, own = [torch.empty(0, network.channels)], [torch.empty(0)]
    for some, known, n in _batches(network, images, features):
        found = network.see(some)
        seen.append(found[:n].float().cpu())
        own.append(network.say(found, known)[:n].float().cpu())
    return torch.cat(seen), torch.cat(own)


def _batches(
    network: nn.Module, images: Tensor, features: Tensor
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Full batches on the network's device, blanks at the end of the last, and how many count."""
    device = next(network.parameters()).device
    network.eval()
    batch = _BATCH if device.type == "cpu" else _BATCH_GPU
    for some, known in zip(torch.split(images, batch), torch.split(features, batch), strict=True):
        blank = batch - len(some)
        if blank:
            some = torch.cat([some, some.new_zeros((blank, *some.shape[1:]))])
            known = torch.cat([known, known.new_full((blank, *known.shape[1:]), torch.nan)])
        if batch > blank:
            yield some.to(device), known.to(device), batch - blank


def loss(logit: Tensor, label: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy [n], softened by ``smoothing``, against labels [n]: 0 or 1, or one of many answers."""
    if logit.ndim == 2:
        return functional.cross_entropy(
            logit, label.long(), reduction="none", label_smoothing=smoothing
        )
    target = label * (1 - smoothing) + 0.5 * smoothing
    return functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
