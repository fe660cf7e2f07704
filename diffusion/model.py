"""The model: process, network and data space, and p(x_s | x_t), the reverse kernel they give."""

from typing import final, get_args

import torch
from torch import Tensor, nn

from diffusion.distributions import Distribution
from diffusion.prediction import (
    Prediction,
    PredictionKind,
    VarianceKind,
    read_binomial,
    read_gaussian,
)
from diffusion.process import BinomialProcess, GaussianProcess, Process
from diffusion.space import DataSpace


@final
class DiffusionModel(nn.Module):
    """A diffusion probabilistic model.

    Args:
        process: the forward process.
        network: [B, *event] and time [B] to [B, outputs * event[0], ...]; its `clock` says which
            time.
        space: what a datum is.
        prediction: what the network predicts.
        variance: the reverse kernel's variance; None for bits, and with "perturbation".

    Raises:
        ValueError: the parts do not fit each other.
    """

    _low: Tensor | None
    _high: Tensor | None

    def __init__(
        self,
        process: Process,
        network: nn.Module,
        space: DataSpace,
        prediction: PredictionKind,
        variance: VarianceKind | None,
    ) -> None:
        super().__init__()
        _check(process, space, prediction, variance)
        self.process, self.network, self.space = process, network, space
        self.prediction, self.variance = prediction, variance
        bounds = space.bounds
        self.register_buffer("_low", bounds[0].float() if bounds else None, persistent=False)
        self.register_buffer("_high", bounds[1].float() if bounds else None, persistent=False)

    @property
    def T(self) -> int:
        """The number of steps."""
        return self.process.T

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return self.space.shape

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.process.beta.device

    def predict(self, x_t: Tensor, t: Tensor, clip: bool = True) -> Prediction:
        """What the network says of x_t; the only place where it is called.

        Args:
            x_t: [B, *event], model units.
            t: int64 [B], 1..T.
            clip: keep x_0hat within the data's range where it has one. Training leaves it out, for
                a clipped element has no gradient.
        """
        output = self.network(x_t, self._time(t))
        if isinstance(self.process, BinomialProcess):
            return read_binomial(self.process, self.prediction, output, x_t, t)
        assert isinstance(self.process, GaussianProcess)
        found = read_gaussian(self.process, self.prediction, self.variance, output, x_t, t)
        if not clip or self._low is None or self._high is None:
            return found
        return found.clipped(self._low, self._high)

    def reverse_kernel(self, x_t: Tensor, t: Tensor, s: Tensor) -> Distribution:
        """p(x_s | x_t), rows [B, *event]; s < t, int64 [B]."""
        return self.predict(x_t, t).kernel(s)

    def _time(self, t: Tensor) -> Tensor:
        """The network's clock: t - 1 ("step"), or log SNR ("log_snr"), float32 [B]."""
        snr = self.network.clock == "log_snr"
        return self.process.log_snr(t).float() if snr else (t - 1).float()


def outputs(process: Process, prediction: PredictionKind, variance: VarianceKind | None) -> int:
    """How many numbers an element the network gives: 2 where it gives a variance too, else 1."""
    if isinstance(process, BinomialProcess):
        return 1
    return 2 if prediction == "perturbation" or variance in ("interpolated", "moment") else 1


def _check(
    process: Process, space: DataSpace, prediction: PredictionKind, variance: VarianceKind | None
) -> None:
    if prediction not in get_args(PredictionKind):
        raise ValueError(f"prediction is one of {get_args(PredictionKind)}, came {prediction!r}")
    if isinstance(process, BinomialProcess):
        if space.kind != "bits":
            raise ValueError(f"a binomial process models bits, came a space of kind {space.kind!r}")
        if prediction not in ("x_0", "perturbation") or variance is not None:
            raise ValueError(
                "a binomial model predicts 'x_0' or 'perturbation' and has no variance, came "
                f"prediction {prediction!r}, variance {variance!r}"
            )
        return
    if space.kind == "bits":
        raise ValueError("bits need a binomial process, came a Gaussian one")
    if prediction == "perturbation":
        if variance is not None:
            raise ValueError(
                f"prediction 'perturbation' has a variance of its own: leave out {variance!r}"
            )
        return
    if variance not in get_args(VarianceKind):
        raise ValueError(f"variance is one of {get_args(VarianceKind)}, came {variance!r}")
    if prediction == "eps" and float(process.alpha_bar[-1]) == 0:
        raise ValueError(
            "prediction 'eps' says nothing of x_0 at t = T, where this schedule leaves no signal "
            "(alpha_bar_T = 0): use 'v' or 'x_0', or a schedule that ends above 0"
        )
