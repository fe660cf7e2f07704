"""A simple density in closed form and a dense network that corrects it.

    x_0hat = E_base[x_0 | x_t] + U sqrt(l n / (s^2 l + n)) f(u, t),    log-variance = the base's
    u = U^T (x_t - s m) / sqrt(s^2 l + n)

for reals, with s^2 = alpha_bar, n = 1 - alpha_bar, and mean m and covariance U diag(l) U^T of the
base: f reads and writes in units of one standard deviation along the principal axes, whatever the
columns have to do with each other. A correction of two outputs adds the second to the log-variance,
which the bound hardly depends on but at the last step: an optimiser that scales gradients lets it
wander. For bits, logits = the base's + f(x_t, t). The correction starts
from zero, so that a fit begins at the base and early stopping can return to it.
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
    """What a `Corrected` is built from.

    Attributes:
        base: the simple density; its values are put in by `Corrected.place`.
        correction: of as many features as the base and at most its outputs, on the clock "log_snr".
    """

    kind: Literal["corrected"] = "corrected"
    base: Annotated[GaussianMixtureConfig | BernoulliMixtureConfig, Field(discriminator="kind")]
    correction: MLPConfig

    @property
    def reads(self) -> tuple[str, str | None] | None:  # type: ignore[override]
        """The meaning of the base's outputs."""
        return self.base.reads

    @property
    def outputs(self) -> Literal[1, 2]:
        """As many as the base has."""
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

    @torch.no_grad()
    def place(self, base: GaussianMixture | BernoulliMixture) -> None:
        """Put in the base, a density that was fitted to the data in model units."""
        self.base.load_state_dict(base.state_dict())
        if self.frame is not None:
            assert isinstance(base, GaussianMixture)  # as the configuration says
            moments = base.mean()[None], base.covariance()[None]
            frame = GaussianMixture.from_values(base.weights.new_ones(1), *moments)
            self.frame.load_state_dict(frame.state_dict())

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """The log-SNR, then what the correction knows of it."""
        return time, *self.correction.condition(time)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """The base's output, corrected, [B, outputs * D], for x_t [B, D]."""
        log_snr, *known = condition
        output = self.base.given(x_t, log_snr)
        if self.frame is None:
            return output + self.correction.given(x_t, *known).to(output.dtype)
        time = log_snr.double()[:, None]
        noise = (-time).sigmoid()
        _, inside, total = self.frame.project(x_t, time.sigmoid().sqrt(), noise)
        inside, total = inside[:, 0], total[:, 0]
        found = self.correction.given((inside / total.sqrt()).to(x_t.dtype), *known)
        missing = output.shape[1] - found.shape[1]  # an output that it lacks is not corrected
        shift, log_var = F.pad(found.double(), (0, missing)).chunk(2, dim=1)
        spread = (self.frame.variances * noise / total).sqrt()
        moved = (spread * shift) @ self.frame.axes[0].mT
        return output + torch.cat([moved, log_var], dim=1).to(output.dtype)
