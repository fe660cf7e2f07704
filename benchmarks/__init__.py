"""Benchmarks of speed and accuracy; each module is a command: `python -m benchmarks.small`."""
