"""Collections of particles with known truth, for a machine that has no data at hand."""

from cryoray.simulation.collection import simulate

__all__ = ["simulate"]
