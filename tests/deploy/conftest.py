"""Ray, imported once without the warnings of its own code."""

import contextlib
import warnings

with warnings.catch_warnings(), contextlib.suppress(ImportError):
    warnings.simplefilter("ignore")
    import ray.data
    import ray.serve  # noqa: F401
