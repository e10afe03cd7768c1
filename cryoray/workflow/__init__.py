"""Driving other programs, and fetching public entries."""
