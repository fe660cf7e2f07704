"""Speed against peers, each module one command: `python -m benchmarks.small`."""
