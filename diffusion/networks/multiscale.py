"""The multi-scale network for images of Sohl-Dickstein et al. 2015, appendix D.2 and Figure D.1.

    h <- softplus(sum_k up_k(conv_k(down_k(h))))                  multi-scale convolution (D.2.4)
    d <- tanh(W d + b), over the whole image, in parallel         dense path (D.2.5)
    y  = W tanh(.. tanh(W [h, d])), at each pixel                 1x1 convolutions
    z_i = sum_j y_ij g_j(t)                                       Equation 62
    g_j(t) = exp(-(t - tau_j)^2 / 2 w^2) / sum_k exp(-(t - tau_k)^2 / 2 w^2)         Equation 63

down_k averages squares of side 2^k pixels and up_k repeats a value over its square. z is z^mu, then
z^Sigma, for the prediction "perturbation" (Equations 64 and 65).
"""

import itertools
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from diffusion.networks.base import SEEN, Network, NetworkSettings, with_seen
from diffusion.networks.embedding import Clock


class MultiscaleConfig(NetworkSettings):
    """The configuration of a `Multiscale`, with at least one of the two paths.

    Attributes:
        shape: shape of an image, [C, H, W]; sides are multiples of 2^(scales - 1).
        T: steps, over which the bumps are spread.
        outputs: 2 (mean and covariance part) or 1, each of C channels.
        channels: width of each multi-scale layer; empty to omit that path, as the paper did for
            MNIST.
        scales: number of scales, each at half the resolution of the one before.
        kernel: side of the convolutions, odd.
        dense: width of each layer of the dense path; empty to omit it.
        dense_channels: channels of the dense path's output.
        pixel: width of each 1x1 convolution.
        bumps: J, the number of functions of time.
        conditional: take what was seen as further channels (`Network`).
        zero_out: start from a network that returns zero.
    """

    kind: Literal["multiscale"] = "multiscale"
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    T: PositiveInt
    outputs: Literal[1, 2] = 2
    channels: tuple[PositiveInt, ...] = Field(default=(20, 20), max_length=16)
    scales: int = Field(default=3, ge=1, le=12)
    kernel: PositiveInt = 3
    dense: tuple[PositiveInt, ...] = Field(default=(), max_length=16)
    dense_channels: PositiveInt = 4
    pixel: tuple[PositiveInt, ...] = Field(default=(40, 40), max_length=16)
    bumps: PositiveInt = 10
    conditional: bool = False
    zero_out: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.channels and not self.dense:
            raise ValueError("the network has no path: name `channels`, `dense` or both")
        if self.kernel % 2 == 0:
            raise ValueError(f"`kernel` is odd, so that it has a middle, came {self.kernel}")
        square = 2 ** (self.scales - 1)
        if self.channels and any(side % square for side in self.shape[1:]):
            raise ValueError(
                f"with {self.scales} scales the sides are multiples of {square}, came "
                f"{list(self.shape[1:])}: write fewer `scales`"
            )
        return self

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        if event != self.shape:
            raise ValueError(
                f"this network takes images {list(self.shape)}, the data have shape {list(event)}"
            )
        if T != self.T:
            raise ValueError(f"the network's bumps span {self.T} steps, the process has {T}")


class MultiscaleConv(nn.Module):
    """A layer softplus(sum_k up_k(conv_k(down_k(h)))), [B, c_in, H, W] -> [B, c_out, H, W]."""

    def __init__(self, c_in: int, c_out: int, scales: int, kernel: int) -> None:
        super().__init__()
        # The scales are summed, so one bias is enough.
        self.convs = nn.ModuleList(
            nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=not k) for k in range(scales)
        )

    def forward(self, h: Tensor) -> Tensor:
        """h [B, c_in, H, W] -> [B, c_out, H, W]."""
        total = self.convs[0](h)
        for k, conv in enumerate(self.convs):
            if k:
                square = 2**k
                coarse = conv(F.avg_pool2d(h, square))
                total = total + F.interpolate(coarse, scale_factor=square, mode="nearest")
        return F.softplus(total)


class Multiscale(Network):
    """The multi-scale network; the module's docstring has its equations."""

    clock: Clock = "step"

    def __init__(self, config: MultiscaleConfig) -> None:
        super().__init__()
        self.config = config
        self.conditional = config.conditional
        C, H, W = config.shape
        c_data = C * (1 + SEEN * config.conditional)
        widths = (c_data, *config.channels)
        self.convs = nn.ModuleList(
            MultiscaleConv(c_in, c_out, config.scales, config.kernel)
            for c_in, c_out in itertools.pairwise(widths)
        )
        c_in = widths[-1] if config.channels else 0
        self.dense = nn.ModuleList()
        if config.dense:
            sizes = (c_data * H * W, *config.dense, config.dense_channels * H * W)
            self.dense.extend(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
            c_in += config.dense_channels
        sizes = (c_in, *config.pixel)
        self.pixel = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(sizes))
        self.readout = nn.Conv2d(sizes[-1], config.outputs * C * config.bumps, 1)
        if config.zero_out:
            for parameter in self.readout.parameters():
                nn.init.zeros_(parameter)

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return g(t), float32 [B, J], from t - 1 [B]: positive, summing to one (Equation 63)."""
        width = self.config.T / self.config.bumps
        t = time.float() + 1.0
        centres = (torch.arange(self.config.bumps, device=t.device) + 0.5) * width
        return ((-0.5 * ((t[:, None] - centres) / width).square()).softmax(-1),)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return z [B, outputs * C, H, W] for x_t [B, C, H, W]."""
        config = self.config
        C = config.shape[0]
        if config.conditional:
            x_t = with_seen(x_t, C)
        if x_t.shape[2:] != torch.Size(config.shape[1:]) or x_t.shape[1] not in (C, (1 + SEEN) * C):
            raise ValueError(
                f"x_t has shape {list(x_t.shape)}; this network takes [rows, "
                f"{', '.join(map(str, config.shape))}]"
            )
        x = x_t.to(self.readout.weight.dtype)
        paths = []
        if self.convs:
            h = x
            for conv in self.convs:
                h = conv(h)
            paths.append(h)
        if self.dense:
            d = x.flatten(1)
            for linear in self.dense:
                d = linear(d).tanh()
            paths.append(d.view(len(x), config.dense_channels, *config.shape[1:]))
        h = torch.cat(paths, dim=1)
        for layer in self.pixel:
            h = layer(h).tanh()
        y = self.readout(h).unflatten(1, (-1, config.bumps))
        bumps = condition[0].to(y.dtype)[:, None, :, None, None]
        out: Tensor = (y * bumps).sum(2)
        return out
