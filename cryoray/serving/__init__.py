"""Judging over HTTP while the microscope collects: on Ray Serve (`app`), or in one process (`local`)."""
