"""Collections of particles with known truth, for a machine that has no data at hand."""

from cryoray.simulation.collection import read_truth, simulate

__all__ = ["read_truth", "simulate"]
