"""Judging in bulk, and what an ensemble is worth: Ray Data."""

from cryoray.inference.bulk import classify
from cryoray.inference.evaluate import cross_validate, evaluate

__all__ = ["classify", "cross_validate", "evaluate"]
