"""noneq beside diffusers' pipelines and LitServe, over HTTP: `python -m benchmarks.serving`."""
