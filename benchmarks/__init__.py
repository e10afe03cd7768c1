"""One file for each question of speed; ``python -m benchmarks.run`` asks them all."""
