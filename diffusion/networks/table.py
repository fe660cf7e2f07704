"""The network of a table: a mixture known in closed form, and a dense network that corrects it.

    numbers       x_0hat = E[x_0 | x_t, y] + sd[x_0 | x_t, y] f,    log-variance = the mixture's
    categories    logits = log P(x_0 | x_t, y) + f

f is an MLP that reads, of each element, x_t or the value that was seen of it, the mixture's mean or
probability, and the share that was seen. It starts from zero, so training begins at the mixture and
early stopping can return to it.

Of a gap f reads what the mixture makes of it, as if x_t were x_0 of the mixture with noise. Were it
told that there is a gap it would learn what gaps tell (no gust is written where there is no wind),
and of a gap that is to be filled would believe that it is none.
"""

from typing import Literal, Self, final

import torch
from pydantic import model_validator
from torch import Tensor
from typing_extensions import override

from diffusion.networks.base import Network, NetworkSettings
from diffusion.networks.dense import MLP, MLPConfig
from diffusion.networks.embedding import Clock
from diffusion.networks.mixture import split_seen
from diffusion.networks.table_mixture import FAR, TableMixture, TableMixtureConfig

_SEEN = 0.999  # the share from which x_t says nothing that what was seen does not


class TableNetworkConfig(NetworkSettings):
    """The configuration of a `TableNetwork`.

    Attributes:
        base: the mixture; `TableNetwork.place` fills in its values.
        correction: an MLP on the clock "log_snr" with the mixture's features and one output, that
            is told what was seen.
    """

    kind: Literal["table"] = "table"
    base: TableMixtureConfig
    correction: MLPConfig

    @property
    def conditional(self) -> bool:
        """True: the network can be told what was seen."""
        return True

    @override
    def conditioned(self) -> Self:
        return self

    @property
    def reads(self) -> tuple[str, str | None] | None:  # type: ignore[override]
        """The same as the mixture's."""
        return self.base.reads

    @property
    def outputs(self) -> Literal[1, 2]:
        """The same number as the mixture's."""
        return self.base.outputs

    @model_validator(mode="after")
    def _fits(self) -> Self:
        own = self.correction
        wanted = (self.base.features, 1, True, "log_snr")
        if (own.features, own.outputs, own.conditional, own.clock) != wanted:
            raise ValueError(
                f"the correction has {self.base.features} features as the mixture has, one output, "
                f"conditional = true and clock = 'log_snr', came {own.features}, {own.outputs}, "
                f"{own.conditional} and {own.clock!r}"
            )
        return self

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        self.base.check(event, T)


@final
class TableNetwork(Network):
    """The mixture and its correction; the module's docstring has the equations."""

    clock: Clock = "log_snr"
    conditional = True

    def __init__(self, config: TableNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.base, self.correction = TableMixture(config.base), MLP(config.correction)

    @torch.no_grad()
    def place(self, base: TableMixture) -> None:
        """Set the mixture to one that was fitted to the data in model units."""
        self.base.load_state_dict(base.state_dict())

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return the log-SNR, then the correction's condition on it."""
        return time, *self.correction.condition(time)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the mixture's output, corrected, [B, outputs * D]."""
        log_snr, *known = condition
        D, R = self.config.base.features, self.config.base.numbers
        output = self.base.given(x_t, log_snr)
        x, told = split_seen(x_t, D)
        value, share, scale = (torch.zeros_like(x),) * 3 if told is None else told
        guess = torch.cat((output[:, :R], output[:, R:D].exp()), 1)
        gap, signal = scale < 0, log_snr.sigmoid()[:, None]
        ratio = output[:, D : D + R].exp()  # of the mixture's variance to the noise's
        # x_t of a gap is noise alone.
        drawn = signal.sqrt() * guess[:, :R] + (signal * ratio + 1).sqrt() * x[:, :R]
        x = torch.where(gap, torch.cat((drawn, guess[:, R:]), 1), x)
        x = torch.where(share > _SEEN, value, x).clamp(-FAR, FAR)
        scale = scale.clamp_min(0)
        f = self.correction.given(torch.cat((x, guess, share, scale), 1), *known).to(output.dtype)
        noise = (-log_snr.double()).sigmoid()[:, None].log()
        spread = ((output[:, D : D + R].double() + noise) / 2).exp().to(output.dtype)
        moved = torch.cat((spread * f[:, :R], f[:, R:]), 1)
        return torch.cat((output[:, :D] + moved, output[:, D:]), 1)
