"""Row ranges read and prepared where they are needed, by Ray or without it, and merged into a set."""

from cryoray.ingest.pipeline import Expected, expected, ingest, plan_sources

__all__ = ["Expected", "expected", "ingest", "plan_sources"]
