"""Collections of particles with known truth, for a machine that has no data at hand."""

from cryoray.simulation.collection import MICROGRAPHS, read_truth, simulate

__all__ = ["MICROGRAPHS", "read_truth", "simulate"]
