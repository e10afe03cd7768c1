"""What the files are called that stand in cryoray's own folders: each name is spelled here and nowhere else.

The partitions (``kept.star`` …) are in `formats.verdicts`, RELION's names in `formats.class_selection`.
"""

from __future__ import annotations

#: Of a folder of verdicts, and the project's profile there and in a session's folder.
VERDICTS_TABLE, PROFILE = "verdicts.parquet", "profile.json"
#: What `select` keeps beside verdicts.
SELECTION = "selection.jsonl"
#: Of a prepared set.
SET, PARTICLES_TABLE = "set.json", "particles.parquet"
#: Of verdicts and of a prepared set: the rows that could not be used.
QUARANTINE_TABLE = "quarantine.parquet"
#: Of an ensemble: what a person reads first, and how it was trained.
CARD, TRAINING = "card.md", "training.json"
#: Of an evaluation.
PREDICTIONS_TABLE = "predictions.parquet"
#: Of whatever was measured: numbers for machines, a page for people.
METRICS, REPORT = "metrics.json", "report.html"
#: Of an evaluation, a validation or a search: what it is made of, so that nothing else replaces it unasked.
MADE_OF = "made_of.json"
