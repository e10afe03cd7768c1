"""Ray Data: row ranges read and prepared where they are needed, and merged into a set."""

from cryoray.ingest.pipeline import ingest, plan_sources

__all__ = ["ingest", "plan_sources"]
