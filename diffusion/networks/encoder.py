"""A classifier of noisy images into K labels: the downward half of a U-Net with a readout.

    h = conv_in(x_t);  e = silu(time(embedding(time)))
    h = res(h, e), `blocks` times per level; halve between levels
    logits = readout(mean over pixels of silu(norm_out(h)))

The architecture follows Dhariwal and Nichol 2021, Section 4, with the mean over pixels in place of
their attention pooling.
"""

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from diffusion.networks.base import Network, NetworkSettings
from diffusion.networks.blocks import Downsample, Shared
from diffusion.networks.embedding import Clock, as_steps, sinusoidal
from diffusion.networks.unet import Down


class EncoderConfig(NetworkSettings):
    """The configuration of an `Encoder`.

    Attributes:
        in_channels: channels C of an image.
        labels: K.
        channels: width of each level, from the full resolution down.
        blocks: residual blocks per level.
        dropout: inside the residual blocks, when training.
        norm_groups, norm_eps: settings of every GroupNorm.
        patch: side of the squares of pixels that are first folded into channels (1: none).
        clock: what `time` is: "step" (t - 1) or "log_snr".
    """

    kind: Literal["encoder"] = "encoder"
    in_channels: PositiveInt = 1
    labels: int = Field(ge=2)
    channels: tuple[PositiveInt, ...] = Field(default=(32, 64), min_length=1, max_length=16)
    blocks: int = Field(default=1, ge=1, le=32)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm_groups: PositiveInt = 8
    norm_eps: PositiveFloat = 1e-5
    patch: PositiveInt = 1
    clock: Clock = "log_snr"

    @model_validator(mode="after")
    def _divides(self) -> Self:
        odd = [width for width in self.channels if width % self.norm_groups]
        if odd:
            raise ValueError(
                f"channels {odd} cannot be divided by norm_groups {self.norm_groups}; write "
                "multiples of it"
            )
        return self

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        fits = len(event) == 3 and event[0] == self.in_channels
        if not fits or event[1] % self.patch or event[2] % self.patch:
            raise ValueError(
                f"data have shape {list(event)}; this encoder takes images [{self.in_channels}, "
                f"height, width] whose sides are multiples of {self.patch}"
            )


class Encoder(Network):
    """A network from [B, C, H, W] and time [B] to the logits of labels [B, K]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.clock: Clock = config.clock
        widths, c_time = config.channels, 4 * config.channels[0]
        shared = Shared(
            c_time,
            config.norm_groups,
            config.norm_eps,
            config.dropout,
            head_dim=None,
            heads=1,
            scale_shift=False,
        )
        self.conv_in = nn.Conv2d(config.in_channels * config.patch**2, widths[0], 3, padding=1)
        self.time = nn.Linear(widths[0], c_time)
        self.down = nn.ModuleList()
        for before, c in pairwise((widths[0], *widths)):
            half = Downsample(c, 1) if len(self.down) < len(widths) - 1 else None
            self.down.append(Down(shared, [before] + [c] * (config.blocks - 1), c, 0, half))
        self.norm_out = shared.norm(widths[-1])
        self.readout = nn.Linear(widths[-1], config.labels)

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return silu(time(embedding(time))), [B, 4 channels[0]]."""
        e = sinusoidal(as_steps(time, self.clock), self.config.channels[0])
        return (F.silu(self.time(e.to(self.time.weight.dtype))),)

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the logits [B, K] for x_t [B, C, H, W]."""
        (e,) = condition
        h = self.conv_in(F.pixel_unshuffle(x_t.to(self.conv_in.weight.dtype), self.config.patch))
        for down in self.down:
            h = down(h, e)[-1]
        found: Tensor = self.readout(F.silu(self.norm_out(h)).mean((2, 3)))
        return found
