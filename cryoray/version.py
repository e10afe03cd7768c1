"""The version of this cryoray."""

__version__ = "0.1.0"
