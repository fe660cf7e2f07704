"""Forward processes q, one file each, and what a network's output means under them.

To add one: a file with a configuration, a `Process`, a `Prediction` and an `Output`, and its
configuration's name in `ProcessConfig`.
"""

from typing import Annotated

from pydantic import Field

from diffusion.process.base import Output, Prediction, PredictionKind, Process, VarianceKind
from diffusion.process.binomial import (
    BinomialConfig,
    BinomialOutput,
    BinomialPrediction,
    BinomialProcess,
)
from diffusion.process.gaussian import (
    GaussianConfig,
    GaussianOutput,
    GaussianPrediction,
    GaussianProcess,
    as_gaussian,
    variance_terms,
)

#: A process's configuration, told apart by `kind`.
ProcessConfig = Annotated[GaussianConfig | BinomialConfig, Field(discriminator="kind")]

__all__ = [
    "BinomialConfig",
    "BinomialOutput",
    "BinomialPrediction",
    "BinomialProcess",
    "GaussianConfig",
    "GaussianOutput",
    "GaussianPrediction",
    "GaussianProcess",
    "Output",
    "Prediction",
    "PredictionKind",
    "Process",
    "ProcessConfig",
    "VarianceKind",
    "as_gaussian",
    "variance_terms",
]
