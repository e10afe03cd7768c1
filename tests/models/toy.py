"""A task that three tiny networks can learn in a second: a bright disc, or not."""

from __future__ import annotations

import numpy as np
import torch

from cryoray.models.networks import NetworkConfig

# Threads of tiny networks wait for each other longer than they compute.
torch.set_num_threads(1)

TINY = (
    NetworkConfig(width=8, blocks=(1,), head=16, stem=3, dropout=0.2),
    NetworkConfig(width=8, blocks=(1, 1), head=16, stem=3, activation="gelu", dropout=0.0),
    NetworkConfig(width=8, blocks=(1,), head=16, stem=5, activation="relu", dropout=0.0),
)


class ToyExamples:
    """Discs of random height in noise, with one feature that tells a little and is missing at times."""

    def __init__(self, n: int = 240, box: int = 16, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.labels = (rng.random(n) < 0.6).astype(np.int8)
        y, x = np.mgrid[:box, :box] - (box - 1) / 2
        disc = (np.hypot(x, y) < box / 5).astype(np.float32)
        height = self.labels * rng.uniform(0.5, 2.5, n)
        noise = rng.normal(0, 1, (n, box, box))
        self.pixels = (height[:, None, None] * disc + noise).astype(np.float32)
        self.features = (self.labels[:, None] + rng.normal(0, 1, (n, 2))).astype(np.float32)
        self.features[rng.random((n, 2)) < 0.3] = np.nan
        self.groups = np.array([f"g{i}" for i in rng.integers(0, 6, n)], object)

    def images(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[rows]
