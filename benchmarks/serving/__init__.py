"""Compare noneq with diffusers and LitServe over HTTP: `python -m benchmarks.serving`."""
