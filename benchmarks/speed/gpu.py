"""What a GPU brings: images per second of training and judging, beside what the machine could do at best.

    python -m benchmarks.speed.gpu [--seconds S] [--ensemble DIR]

Torch alone, no Ray; five minutes on one GPU. Each rate stands beside two limits that were measured in the
same run: a large product of matrices of the same type (arithmetic), and a copy of a large array (bandwidth),
for the bytes that layers read and write one by one. Then scores are held against those of this machine's CPU
in float32. Without a GPU it says so, and runs small on the CPU, so that the script itself is known to work.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import Row, main, result
from cryoray.boosting.calibration import Platt
from cryoray.boosting.voting import score
from cryoray.imaging.augment import augment, draw
from cryoray.models.ensemble import Ensemble
from cryoray.models.networks import DEFAULT_MEMBERS, Network, build, loss
from cryoray.models.registry import SHIPPED
from cryoray.records import MEMBERS
from cryoray.settings import AugmentSettings

BOX = 64
#: Images held, those of a step of training and of judging, those that are compared; side of the product of
#: matrices, MiB that are copied.
_ON_GPU = {
    "held": 131072,
    "train": 4096,
    "judge": 8192,
    "compared": 16384,
    "side": 8192,
    "mib": 2048,
}
_ON_CPU = {"held": 64, "train": 16, "judge": 16, "compared": 64, "side": 256, "mib": 8}


class Limit(NamedTuple):
    """What the device does at best: FLOP/s, and bytes read and written per second."""

    arithmetic: float
    bandwidth: float


class Work(NamedTuple):
    """What an image costs: FLOP, and bytes that layers read and write if none is fused with the next."""

    arithmetic: float
    traffic: float


def images_of(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Blobs in noise and noise alone, float32 [n, BOX, BOX], and which of them have a blob."""
    generator = torch.Generator(device).manual_seed(1)
    noise = torch.randn(count, BOX, BOX, generator=generator, device=device)
    keep = torch.rand(count, generator=generator, device=device) < 0.5
    axis = torch.arange(BOX, device=device) - BOX / 2
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (BOX / 6) ** 2))
    return noise + 0.7 * blob * keep[:, None, None], keep.float()


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rate(step: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Steps per second, after some that are not counted."""
    for _ in range(3):
        step()
    wait(device)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        step()
        done += 1
        if done % 8 == 0:
            wait(device)
    wait(device)
    return done / (time.perf_counter() - began)


def limit(device: torch.device, dtype: torch.dtype, size: dict[str, int], seconds: float) -> Limit:
    """Arithmetic of a large product of matrices, and bandwidth of a copy."""
    a = torch.randn(size["side"], size["side"], device=device).to(dtype)
    source = torch.zeros(size["mib"] << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    products = rate(lambda: a @ a, device, seconds)
    copies = rate(lambda: target.copy_(source), device, seconds)
    return Limit(2.0 * size["side"] ** 3 * products, 2.0 * source.numel() * copies)


def work_of(network: Network, device: torch.device, itemsize: int, *, train: bool) -> Work:
    """What a forward pass costs per image; with ``train`` a backward pass, too."""
    batch = 8
    images = torch.randn(batch, BOX, BOX, device=device)
    nothing = torch.empty(batch, 0, device=device)
    moved = 0

    def seen(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        nonlocal moved
        moved += (sum(one.numel() for one in given) + made.numel()) * itemsize

    leaves = [one for one in network.modules() if not [*one.children()]]
    hooks = [one.register_forward_hook(seen) for one in leaves]
    with FlopCounterMode(display=False) as counter:
        said = network(images, nothing)
        if train:
            said.sum().backward()
    for hook in hooks:
        hook.remove()
    network.zero_grad(set_to_none=True)
    # Backward reads what forward made, and reads and writes gradients of the same size.
    return Work(counter.get_total_flops() / batch, moved * (3 if train else 1) / batch)


def trained(
    name: str, images: Tensor, keep: Tensor, dtype: torch.dtype, batch: int, seconds: float
) -> tuple[float, float]:
    """Images per second of training a member on images that are on the device, and its last loss."""
    device = images.device
    network = build(DEFAULT_MEMBERS[MEMBERS.index(name)], 0, 1).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(2)
    nothing = torch.empty(batch, 0, device=device)
    last = torch.zeros((), device=device)

    def step() -> None:
        nonlocal last
        rows = torch.randint(len(images), (batch,), generator=generator).to(device)
        seen = augment(images[rows], draw(batch, generator, AugmentSettings(), BOX))
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            said = network(seen, nothing)
        mean = loss(said.float(), keep[rows], 0.02).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(mean)
        optimizer.step()
        last = mean.detach()

    per_second = batch * rate(step, device, seconds)
    return per_second, float(last)


@torch.inference_mode()
def said_by(network: Network, images: Tensor, dtype: torch.dtype, batch: int) -> Tensor:
    """Logits, float32 [n] on the CPU."""
    device = next(network.parameters()).device
    parts = []
    for some in torch.split(images, batch):
        nothing = torch.empty(len(some), 0, device=device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            parts.append(network(some.to(device), nothing).float())
    return torch.cat(parts).cpu()


def scores(judge: Ensemble, images: Tensor, dtype: torch.dtype, batch: int) -> np.ndarray:
    """Scores of an ensemble of images alone, d3 asked everywhere, float32 [n]."""
    return score(
        *(
            Platt(c.slope, c.offset)(said_by(network, images, dtype, batch).numpy())
            for c, network in zip(judge.manifest.calibration, judge.networks, strict=True)
        )
    )


def measure(seconds: float | None = None, ensemble: Path | None = None) -> dict[str, Any]:
    """Rates of every member and type of number, then the comparison with the CPU."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    size, seconds = (_ON_GPU if gpu else _ON_CPU), seconds or (10.0 if gpu else 0.2)
    torch.backends.cudnn.allow_tf32 = False
    print(torch.cuda.get_device_name() if gpu else "no GPU here: small, on the CPU", flush=True)
    images, keep = images_of(size["held"], device)
    rows: list[Row] = []
    notes = [f"{size['held']:,} images of {BOX} px, on the device before the clock starts"]
    judge = Ensemble.load(ensemble or SHIPPED / "particle")
    for dtype in (torch.float32, torch.bfloat16):
        name_of = str(dtype).removeprefix("torch.")
        best = limit(device, dtype, size, seconds / 4)
        notes.append(
            f"{name_of}: {best.arithmetic / 1e12:.3g} TFLOP/s in a product of matrices, "
            f"{best.bandwidth / 1e9:.3g} GB/s in a copy"
        )
        itemsize = dtype.itemsize
        for name in MEMBERS:
            network = build(DEFAULT_MEMBERS[MEMBERS.index(name)], 0, 1).to(device)
            cost = work_of(network, device, itemsize, train=True)
            per_second, last = trained(name, images, keep, dtype, size["train"], seconds)
            rows.append(_row(f"train {name}, {name_of}", per_second, cost, best))
            notes.append(f"train {name}, {name_of}: loss {last:.3f} at the end")
            network.eval()
            some = images[: size["judge"]]
            cost = work_of(network, device, itemsize, train=False)
            per_second = len(some) * rate(
                lambda network=network, some=some, dtype=dtype: said_by(  # type: ignore[misc]
                    network, some, dtype, size["judge"]
                ),
                device,
                seconds,
            )
            rows.append(_row(f"judge {name}, {name_of}", per_second, cost, best))
    notes += _compared(judge, images[: size["compared"]].cpu(), device, size["judge"])
    if not gpu:
        notes.append("no GPU here: these are numbers of a CPU, and say that the script works")
    return result(
        "How fast does the device train and judge, against what it could do at best?",
        rows,
        ratios=(),
        notes=notes,
    )


def _row(name: str, per_second: float, cost: Work, best: Limit) -> Row:
    print(f"{name}: {per_second:,.0f} images/s", flush=True)
    return {
        "": name,
        "images/s": per_second,
        "MFLOP/image": cost.arithmetic / 1e6,
        "% of arithmetic": 100 * per_second * cost.arithmetic / best.arithmetic,
        "% of bandwidth": 100 * per_second * cost.traffic / best.bandwidth,
    }


def _compared(judge: Ensemble, images: Tensor, device: torch.device, batch: int) -> list[str]:
    """Scores on the device against those of the CPU in float32, in words."""
    if judge.features:
        return ["the ensemble takes metadata: scores were not compared"]
    reference = scores(judge.to("cpu"), images, torch.float32, 64)
    judge, line, made = judge.to(device), np.float32(judge.threshold), []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        found = scores(judge, images, dtype, batch)
        differ = int(((found >= line) != (reference >= line)).sum())
        made.append(
            f"{device.type} in {name} against the CPU in float32: scores differ by at most "
            f"{np.abs(found - reference).max():.2g}, {differ:,} of {len(found):,} forced decisions differ"
        )
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, help="for each rate; 10 on a GPU, 0.2 on a CPU")
    parser.add_argument("--ensemble", type=Path)
    given = parser.parse_args()
    main(lambda: measure(given.seconds, given.ensemble))
