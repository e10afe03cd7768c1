"""Ray Train: three rounds of boosting over any number of workers."""

from cryoray.training.label_errors import report_labels
from cryoray.training.trainer import train

__all__ = ["report_labels", "train"]
