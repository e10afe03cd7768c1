"""Ray Train: three rounds of boosting over any number of workers."""

from cryoray.training.trainer import train

__all__ = ["train"]
