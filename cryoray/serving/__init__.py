"""Judging over HTTP while the microscope collects: Ray Serve."""

from cryoray.serving.app import Running, serve, start

__all__ = ["Running", "serve", "start"]
