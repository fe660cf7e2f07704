"""Forward processes q, one per file, and how each reads a network's output.

To add one, write a file with a configuration, a `Process`, a `Prediction` and an `Output`, and add
the configuration to `ProcessConfig`.
"""

from typing import Annotated

from pydantic import Field

from diffusion.process.base import (
    MEASURED,
    Output,
    Prediction,
    PredictionKind,
    Process,
    VarianceKind,
)
from diffusion.process.binomial import (
    BinomialConfig,
    BinomialOutput,
    BinomialPrediction,
    BinomialProcess,
)
from diffusion.process.categorical import CategoricalConfig, CategoricalProcess
from diffusion.process.gaussian import (
    GaussianConfig,
    GaussianOutput,
    GaussianPrediction,
    GaussianProcess,
    as_gaussian,
    variance_terms,
)
from diffusion.process.mixed import MixedConfig, MixedProcess

#: Any process's configuration, discriminated by `kind`.
ProcessConfig = Annotated[
    GaussianConfig | BinomialConfig | CategoricalConfig | MixedConfig, Field(discriminator="kind")
]

__all__ = [
    "MEASURED",
    "BinomialConfig",
    "BinomialOutput",
    "BinomialPrediction",
    "BinomialProcess",
    "CategoricalConfig",
    "CategoricalProcess",
    "GaussianConfig",
    "GaussianOutput",
    "GaussianPrediction",
    "GaussianProcess",
    "MixedConfig",
    "MixedProcess",
    "Output",
    "Prediction",
    "PredictionKind",
    "Process",
    "ProcessConfig",
    "VarianceKind",
    "as_gaussian",
    "variance_terms",
]
