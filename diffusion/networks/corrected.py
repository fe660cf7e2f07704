"""A simple closed-form density plus a dense network that corrects it.

    x_0hat = E_base[x_0 | x_t] + U sqrt(l n / (s^2 l + n)) f(u, t),    log-variance = the base's
    u = U^T (x_t - s m) / sqrt(s^2 l + n)

for real data, with s^2 = alpha_bar, n = 1 - alpha_bar, and the base's mean m and covariance
U diag(l) U^T. The correction f reads and writes in units of one standard deviation along the
principal axes. If it has a second output, that is added to the log-variance; the bound hardly
depends on it except at the last step, so an optimiser that scales gradients lets it drift. Where
something was seen, f is told of it too, and the base is conditioned on it in closed form; the
correction then shrinks with the base's own standard deviation, sqrt(Var[x_0i | x_t, y] /
Var[x_0i | x_t]).

For binary data, logits = the base's + f(x_t, t). The correction starts from zero, so training
begins at the base and early stopping can return to it.
"""

from typing import Annotated, Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from diffusion.networks.base import Network, NetworkSettings
from diffusion.networks.bernoulli_mixture import BernoulliMixture, BernoulliMixtureConfig
from diffusion.networks.dense import MLP, MLPConfig
from diffusion.networks.embedding import Clock
from diffusion.networks.gaussian_mixture import GaussianMixture, GaussianMixtureConfig


class CorrectedConfig(NetworkSettings):
    """The configuration of a `Corrected`.

    Attributes:
        base: the simple density; `Corrected.place` fills in its values.
        correction: an MLP on the clock "log_snr" with the base's features and at most its outputs.
    """

    kind: Literal["corrected"] = "corrected"
    base: Annotated[GaussianMixtureConfig | BernoulliMixtureConfig, Field(discriminator="kind")]
    correction: MLPConfig

    @property
    def conditional(self) -> bool:
        """Whether the correction is told what was seen; the base always can be."""
        return self.correction.conditional

    @override
    def conditioned(self) -> Self:
        return self.model_copy(update={"correction": self.correction.conditioned()})

    @property
    def reads(self) -> tuple[str, str | None] | None:  # type: ignore[override]
        """The same as the base's."""
        return self.base.reads

    @property
    def outputs(self) -> Literal[1, 2]:
        """The same number as the base's."""
        return self.base.outputs

    @model_validator(mode="after")
    def _fits(self) -> Self:
        base, own = self.base, self.correction
        if own.features != base.features or own.outputs > base.outputs:
            raise ValueError(
                f"the correction has {base.features} features as its base has, and at most "
                f"{base.outputs} outputs, came {own.features} and {own.outputs}"
            )
        if own.clock != "log_snr":
            raise ValueError(f"the base's clock is log_snr, came {own.clock!r}: write the same")
        return self

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        self.base.check(event, T)
        self.correction.check(event, T)


@final
class Corrected(Network):
    """The base and its correction; the module's docstring has the equations."""

    clock: Clock = "log_snr"
    base: GaussianMixture | BernoulliMixture

    def __init__(self, config: CorrectedConfig) -> None:
        super().__init__()
        self.config = config
        if isinstance(config.base, BernoulliMixtureConfig):
            self.base, self.frame = BernoulliMixture(config.base), None
        else:
            whole = config.base.model_copy(update={"components": 1})
            self.base, self.frame = GaussianMixture(config.base), GaussianMixture(whole)
        self.correction = MLP(config.correction)
        self.conditional = config.conditional

    @torch.no_grad()
    def place(self, base: GaussianMixture | BernoulliMixture) -> None:
        """Set the base to a density that was fitted to the data in model units."""
        self.base.load_state_dict(base.state_dict())
        if self.frame is not None:
            assert isinstance(base, GaussianMixture)  # as the configuration says
            moments = base.mean()[None], base.covariance()[None]
            frame = GaussianMixture.from_values(base.weights.new_ones(1), *moments)
            self.frame.load_state_dict(frame.state_dict())

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return the log-SNR, then the correction's condition on it."""
        return time, *self.correction.condition(time)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the base's output plus the correction, [B, outputs * D], for x_t [B, D]."""
        log_snr, *known = condition
        output = self.base.given(x_t, log_snr)
        if self.frame is None:
            return output + self.correction.given(x_t, *known).to(output.dtype)
        D = self.config.base.features
        x_t, told = x_t[:, :D].contiguous(), x_t[:, D:]
        time = log_snr.double()[:, None]
        noise = (-time).sigmoid()
        _, inside, total = self.frame.project(x_t, time.sigmoid().sqrt(), noise)
        inside, total = inside[:, 0], total[:, 0]
        u = (inside / total.sqrt()).to(x_t.dtype)
        found = self.correction.given(torch.cat((u, told), 1), *known)
        missing = output.shape[1] - found.shape[1]  # outputs the correction lacks stay the base's
        shift, log_var = F.pad(found.double(), (0, missing)).chunk(2, dim=1)
        spread = (self.frame.variances * noise / total).sqrt()
        moved = (spread * shift) @ self.frame.axes[0].mT
        if told.shape[1]:
            less = output[:, D:].double() - self.base.given(x_t, log_snr)[:, D:]
            moved = moved * (less / 2).exp().clamp(max=1)
        return output + torch.cat([moved, log_var], dim=1).to(output.dtype)
