"""Dense networks for vectors of reals or bits.

MLP, with e = act(time(embedding(time))) and `depth` activations:

    h_1 = first(x_t) + e_1,   h_i = h_{i-1} + layer_i(act(h_{i-1})) + e_i,   readout(act(h_depth))

RBF, normalised radial basis functions (Sohl-Dickstein et al. 2015, "the paper", appendix D.1.1):

    phi_j(x) = exp(-|x - c_j|^2 / (2 w_j^2)) / sum_k exp(-|x - c_k|^2 / (2 w_k^2)),   W_t phi + b_t

A readout per step gives each t its own last linear layer, as in both of the paper's small models.
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from diffusion.networks.base import SEEN, Network, NetworkSettings, check_vector, with_seen
from diffusion.networks.embedding import Clock, as_steps, sinusoidal

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


class MLPConfig(NetworkSettings):
    """The configuration of an `MLP`.

    The paper's heartbeat network is `features=20, width=50, depth=3, activation="sigmoid",
    residual=False, embedding=0, readout_steps=2000`.

    Attributes:
        features: D, the elements of a vector.
        outputs: 1 (mean part or logits) or 2 (mean and variance part), each of D elements.
        width: units of a hidden layer.
        depth: number of hidden layers.
        activation: their non-linearity.
        residual: add each layer's output to its input.
        embedding: width of the sinusoidal embedding of time; 0 for none.
        readout_steps: T for a separate last layer at each of T steps; None for a shared one.
        conditional: take what was seen as further inputs (`Network`).
        zero_out: start from a network that returns zero.
        clock: what `time` is: "step" (t - 1) or "log_snr".
    """

    kind: Literal["mlp"] = "mlp"
    features: PositiveInt
    outputs: Literal[1, 2] = 1
    width: PositiveInt = 128
    depth: int = Field(default=3, ge=1, le=100)
    activation: Literal["silu", "sigmoid", "tanh"] = "silu"
    residual: bool = True
    embedding: int = Field(default=64, ge=0)
    readout_steps: PositiveInt | None = None
    conditional: bool = False
    zero_out: bool = True
    clock: Clock = "step"

    @model_validator(mode="after")
    def _knows_time(self) -> Self:
        if self.readout_steps is None and self.embedding < 2:
            raise ValueError(
                f"with embedding {self.embedding} and no readout_steps the network cannot know the "
                "time: write an embedding of 2 or more, or readout_steps = T"
            )
        if self.readout_steps is not None and self.clock != "step":
            raise ValueError(
                f"a readout per step counts steps, came clock {self.clock!r}: write clock = 'step'"
            )
        return self

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        check_vector(event, self.features)
        if self.readout_steps not in (None, T):
            raise ValueError(f"readout_steps is T = {T} or left out, came {self.readout_steps}")


class RBFConfig(NetworkSettings):
    """The configuration of an `RBF`; the paper's swiss roll network has 16 units.

    Attributes:
        features: D, the elements of a vector.
        outputs: 1 (mean part or logits) or 2 (mean and variance part), each of D elements.
        units: number of basis functions.
        T: steps, each with its own readout.
        zero_out: start from a network that returns zero.
    """

    kind: Literal["rbf"] = "rbf"
    features: PositiveInt
    outputs: Literal[1, 2] = 1
    units: PositiveInt = 16
    T: PositiveInt
    zero_out: bool = True

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        check_vector(event, self.features)
        if T != self.T:
            raise ValueError(
                f"the network has a readout for each of {self.T} steps, the process {T}"
            )


class StepReadout(nn.Module):
    """A separate linear layer W_t h + b_t for each of T steps."""

    def __init__(self, T: int, c_in: int, c_out: int) -> None:
        super().__init__()
        self.T = T
        bound = c_in**-0.5  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(T, c_out, c_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(T, c_out).uniform_(-bound, bound))

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        """h [B, c_in] and time [B], t - 1 in 0..T - 1 -> [B, c_out]."""
        step = time.round().long()
        if len(step) == 1:  # one for all rows
            return F.linear(h, self.weight[step][0], self.bias[step][0])  # no device sync
        return torch.einsum("boi,bi->bo", self.weight[step], h) + self.bias[step]


class MLP(Network):
    """A multi-layer perceptron conditioned on time; the module's docstring has its equations."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.clock: Clock = config.clock
        self.conditional = config.conditional
        width, c_out = config.width, config.outputs * config.features
        self.act = _ACTIVATIONS[config.activation]
        c_in = config.features * (1 + SEEN * config.conditional)
        self.first = nn.Linear(c_in, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth - 1))
        timed = config.embedding > 0
        self.time = nn.Linear(config.embedding, width) if timed else None
        self.shifts = nn.ModuleList(
            nn.Linear(width, width, bias=False) for _ in range(config.depth) if timed
        )
        self.readout = (
            nn.Linear(width, c_out)
            if config.readout_steps is None
            else StepReadout(config.readout_steps, width, c_out)
        )
        if config.zero_out:
            _zero(self.readout)

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return each layer's bias plus its e_i, [B, depth, width], if embedded; then the time."""
        if self.time is None:
            return (time,)
        embedding = sinusoidal(as_steps(time, self.clock), self.config.embedding)
        e = self.act(self.time(embedding.to(self.time.weight.dtype)))
        each = zip(self.shifts, (self.first, *self.layers), strict=True)
        return torch.stack([shift(e) + layer.bias for shift, layer in each], dim=1), time

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the output [B, outputs * D] for x_t [B, D]."""
        if self.conditional:
            x_t = with_seen(x_t, self.config.features)
        _check(x_t, self.first.in_features)
        *shifts, time = condition
        # Python's overhead dominates small networks: look up each part once and avoid calling
        # modules.
        act, residual, layers = self.act, self.config.residual, (self.first, *self.layers)
        biases = shifts[0].unbind(1) if shifts else [layer.bias for layer in layers]
        h = torch.addmm(biases[0], x_t.to(self.first.weight.dtype), layers[0].weight.t())
        for layer, bias in zip(layers[1:], biases[1:], strict=True):
            h = torch.addmm(h + bias if residual else bias, act(h), layer.weight.t())
        readout, h = self.readout, act(h)
        if isinstance(readout, StepReadout):
            out: Tensor = readout(h, time)
            return out
        return F.linear(h, readout.weight, readout.bias)


class RBF(Network):
    """Normalised radial basis functions with a readout per step (the paper's swiss roll network).

    Centres and widths are learned. Centres start as standard normal draws, since the data have unit
    variance, or where `place` puts them.
    """

    clock: Clock = "step"

    def __init__(self, config: RBFConfig) -> None:
        super().__init__()
        self.config = config
        self.centres = nn.Parameter(torch.randn(config.units, config.features))
        self.log_widths = nn.Parameter(torch.zeros(config.units))
        self.readout = StepReadout(config.T, config.units, config.outputs * config.features)
        if config.zero_out:
            _zero(self.readout)

    @torch.no_grad()
    def place(self, x_0: Tensor) -> None:
        """Initialise from the data: k-means centres, widths 2/3 of the distance to the nearest.

        Units that start elsewhere seldom reach sparse data. This is the classical recipe (Moody and
        Darken 1989), with k-means started by farthest-point sampling (Gonzalez 1985).

        Args:
            x_0: data, [N, D], model units.

        Raises:
            ValueError: fewer distinct data than units.
        """
        different = len(x_0.unique(dim=0))
        if different < len(self.centres):
            raise ValueError(
                f"{len(self.centres)} units need at least as many distinct data, came "
                f"{different}: fit more data, or fewer units"
            )
        centres = x_0[:1]
        while len(centres) < len(self.centres):
            far = torch.cdist(x_0, centres).amin(1).argmax()
            centres = torch.cat((centres, x_0[far][None]))
        for _ in range(20):
            near = torch.cdist(x_0, centres).argmin(1)
            member = near == torch.arange(len(centres), device=x_0.device)[:, None]
            count = member.sum(1, keepdim=True)
            centres = torch.where(count > 0, (member.to(x_0) @ x_0) / count, centres)
        apart = torch.cdist(centres, centres).fill_diagonal_(torch.inf).amin(1)
        self.centres.copy_(centres)
        self.log_widths.copy_((apart * (2 / 3)).log())

    def basis(self, x: Tensor) -> Tensor:
        """Return phi(x) for x [B, D]: positive, summing to one over the units, [B, units]."""
        squares = (x[:, None] - self.centres).square().sum(-1)
        return (-0.5 * squares * (-2.0 * self.log_widths).exp()).softmax(-1)

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return the time unchanged, t - 1 in 0..T - 1."""
        return (time,)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return W_t phi(x_t) + b_t [B, outputs * D], for x_t [B, D]."""
        _check(x_t, self.config.features)
        out: Tensor = self.readout(self.basis(x_t.to(self.centres.dtype)), condition[0])
        return out


def _check(x_t: Tensor, features: int) -> None:
    if x_t.ndim != 2 or x_t.shape[1] != features:
        raise ValueError(f"x_t has shape {tuple(x_t.shape)}; this network takes [rows, {features}]")


def _zero(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
