"""One training loop, what it reads and keeps, pairs of runs and sweeps."""
