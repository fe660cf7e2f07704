"""The U-Net of DDPM, for images.

    h = conv_in(x_t);  e = time_out(silu(time_in(embedding(time))))
    down:  h = attn(res(h, e)), kept as a skip, `blocks` times per level; halve between levels
    mid:   h = res(attn(res(h, e)), e)
    up:    h = attn(res([h, skip], e)), `blocks + 1` times per level; double between levels
    out:   conv_out(silu(norm_out(h)))

The architecture follows Ho, Jain and Abbeel (2020), appendix B, and matches diffusers'
`UNet2DModel` layer by layer; `scale_shift`, `heads`, `resample` and `time_scale` give Nichol and
Dhariwal's `UNetModel` (2021). `python -m training convert` imports the weights of either.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from diffusion.networks.base import SEEN, Network, NetworkSettings, with_seen
from diffusion.networks.blocks import (
    Attention,
    Downsample,
    Residual,
    ResidualDown,
    ResidualUp,
    Shared,
    Upsample,
)
from diffusion.networks.embedding import Clock, as_steps, sinusoidal, with_fourier


class UNetConfig(NetworkSettings):
    """The configuration of a `UNet`.

    Attributes:
        in_channels: channels C of an image.
        outputs: 1 (mean part) or 2 (mean and variance part), each of C channels.
        channels: width of each level, from the full resolution down.
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: which levels have self-attention, one boolean per level; empty for none.
        mid_attention: self-attention between the two residual blocks of the lowest level.
        head_dim: channels per attention head; None to use `heads` heads at every level.
        heads: number of attention heads if `head_dim` is None; 1 in DDPM.
        scale_shift: how the time enters a residual block, see `blocks.ResidualLayers`.
        resample: change resolution by a convolution ("conv") or a residual block ("residual").
        dropout: inside the residual blocks, when training.
        norm_groups, norm_eps: settings of every GroupNorm.
        patch: side of the squares of pixels that are folded into channels at the input and unfolded
            at the output (1: none, as in diffusers); it divides height and width. The network works
            at 1/patch of the resolution, which on a CPU makes wider layers affordable.
        fourier: append sin and cos of 2^k pi x_t for each k to the input (VDM, Kingma et al. 2021,
            appendix C), so that the network can distinguish the last bits of 8-bit data.
        gates: add the Fourier features to the output with learned weights per pixel, out = h_0 +
            sum_k h_k feature_k. Where x_0 is known up to rounding, the noise is such a feature
            times a smooth weight.
        downsample_padding: 1, or 0 for DDPM's own asymmetric padding (right and bottom).
        flip_sin_to_cos, freq_shift: the time embedding, see `embedding.sinusoidal`.
        time_scale: factor on the embedded steps; 1000 / T gives the "rescaled timesteps" of Nichol
            and Dhariwal (2021).
        conditional: take what was seen as further channels (`Network`).
        zero_out: start from a network that returns zero.
        clock: what `time` is: "step" (t - 1) or "log_snr".
    """

    kind: Literal["unet"] = "unet"
    in_channels: PositiveInt = 1
    outputs: Literal[1, 2] = 1
    channels: tuple[PositiveInt, ...] = Field(default=(32, 64), min_length=1, max_length=16)
    blocks: int = Field(default=2, ge=1, le=32)
    attention: tuple[bool, ...] = ()
    mid_attention: bool = False
    head_dim: PositiveInt | None = None
    heads: PositiveInt = 1
    scale_shift: bool = False
    resample: Literal["conv", "residual"] = "conv"
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm_groups: PositiveInt = 8
    norm_eps: PositiveFloat = 1e-5
    patch: PositiveInt = 1
    fourier: tuple[int, ...] = ()
    gates: bool = False
    downsample_padding: Literal[0, 1] = 1
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    time_scale: PositiveFloat = 1.0
    conditional: bool = False
    zero_out: bool = True
    clock: Clock = "step"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.attention and len(self.attention) != len(self.channels):
            raise ValueError(
                f"attention has {len(self.attention)} entries for {len(self.channels)} levels; "
                "write one boolean for each entry of channels, or () for none"
            )
        if self.gates and not self.fourier:
            raise ValueError("gates weigh the fourier features: name some, such as (5, 6, 7, 8)")
        attended = [c for c, a in zip(self.channels, self.attention, strict=False) if a]
        attended += [self.channels[-1]] if self.mid_attention else []
        for name, width, parts in [
            *(("norm_groups", c, self.norm_groups) for c in self.channels),
            *(("head_dim", c, self.head_dim or 1) for c in attended),
            *(("heads", c, 1 if self.head_dim else self.heads) for c in attended),
        ]:
            if width % parts:
                raise ValueError(
                    f"channels {width} cannot be divided by {name} {parts}; "
                    f"write multiples of it, or another {name}"
                )
        return self

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        self.check_image(event)

    def check_image(self, event: tuple[int, ...]) -> None:
        """Raise ValueError unless `event` is [C, H, W] with the configured C and patch."""
        if len(event) != 3 or event[0] != self.in_channels:
            raise ValueError(
                f"data have shape {list(event)}; this U-Net takes images "
                f"[{self.in_channels}, height, width]"
            )
        if event[1] % self.patch or event[2] % self.patch:
            raise ValueError(
                f"data have shape {list(event)}; with patch {self.patch} height and width are "
                f"multiples of {self.patch}"
            )


class Blocks(nn.Module):
    """Residual blocks, of which the first `attended` have attention, followed by `resample`."""

    def __init__(
        self,
        shared: Shared,
        c_in: Sequence[int],
        c_out: int,
        attended: int,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.res = nn.ModuleList(Residual(shared, c, c_out) for c in c_in)
        self.attn = nn.ModuleList(Attention(shared, c_out) for _ in range(attended))
        self.resample = resample

    def block(self, i: int, h: Tensor, e: Tensor) -> Tensor:
        """Apply residual block i, and its attention if it has one."""
        h = self.res[i](h, e)
        return self.attn[i](h) if i < len(self.attn) else h


class Down(Blocks):
    """One level on the way down."""

    def forward(self, h: Tensor, e: Tensor) -> list[Tensor]:
        """h -> the level's skips; the last is the input of the next level."""
        skips: list[Tensor] = []
        for i in range(len(self.res)):
            h = self.block(i, h, e)
            skips.append(h)
        return skips if self.resample is None else [*skips, self.resample(h, e)]


class Mid(Blocks):
    """The lowest level."""

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h -> the same shape."""
        for i in range(len(self.res)):
            h = self.block(i, h, e)
        return h


class Up(Blocks):
    """One level on the way up."""

    def forward(self, h: Tensor, e: Tensor, skips: list[Tensor]) -> Tensor:
        """h -> the next level's size; each block pops a skip from the end of `skips`."""
        for i in range(len(self.res)):
            h = self.block(i, torch.cat([h, skips.pop()], dim=1), e)
        return h if self.resample is None else self.resample(h, e, skips[-1].shape[-2:])


class UNet(Network):
    """The U-Net of DDPM (Ho et al. 2020, appendix B); the module's docstring has its equations."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.clock: Clock = config.clock
        self.conditional = config.conditional
        widths, blocks = config.channels, config.blocks
        attention = config.attention or (False,) * len(widths)

        c_time = 4 * widths[0]
        c_pixels, features = config.in_channels * config.patch**2, 2 * len(config.fourier)
        c_image = c_pixels * (1 + features)
        c_seen = SEEN * c_pixels if config.conditional else 0
        self.conv_in = nn.Conv2d(c_image + c_seen, widths[0], 3, padding=1)
        self.time_in = nn.Linear(widths[0], c_time)
        self.time_out = nn.Linear(c_time, c_time)

        shared = Shared(
            c_time,
            config.norm_groups,
            config.norm_eps,
            config.dropout,
            config.head_dim,
            config.heads,
            config.scale_shift,
        )
        self.down, width, skips = nn.ModuleList(), widths[0], [widths[0]]
        for i, c in enumerate(widths):
            half = self._halve(shared, c) if i < len(widths) - 1 else None
            c_in = [width] + [c] * (blocks - 1)
            self.down.append(Down(shared, c_in, c, blocks * attention[i], half))
            skips += [c] * (blocks + (half is not None))
            width = c

        self.mid = Mid(shared, [width] * 2, width, int(config.mid_attention))

        self.up = nn.ModuleList()
        for i, c in reversed(list(enumerate(widths))):
            double = self._double(shared, c) if i > 0 else None
            c_in = [own + skips.pop() for own in [width] + [c] * blocks]
            self.up.append(Up(shared, c_in, c, (blocks + 1) * attention[i], double))
            width = c

        self.norm_out = shared.norm(width)
        c_out = config.outputs * c_pixels * (1 + features * config.gates)
        self.conv_out = nn.Conv2d(width, c_out, 3, padding=1)
        if config.zero_out:
            for parameter in self.conv_out.parameters():
                nn.init.zeros_(parameter)

    def _halve(self, shared: Shared, channels: int) -> nn.Module:
        if self.config.resample == "residual":
            return ResidualDown(shared, channels, channels)
        return Downsample(channels, self.config.downsample_padding)

    def _double(self, shared: Shared, channels: int) -> nn.Module:
        if self.config.resample == "residual":
            return ResidualUp(shared, channels, channels)
        return Upsample(channels)

    @override
    def condition(self, time: Tensor) -> tuple[Tensor, ...]:
        """Return silu(time_out(silu(time_in(embedding(time))))), [B, 4 channels[0]]."""
        config = self.config
        steps, order = as_steps(time, self.clock) * config.time_scale, config.flip_sin_to_cos
        e = sinusoidal(
            steps, config.channels[0], flip_sin_to_cos=order, freq_shift=config.freq_shift
        )
        e = self.time_out(F.silu(self.time_in(e.to(self.time_in.weight.dtype))))
        return (F.silu(e),)  # every residual block starts with it: done once here

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return the output [B, outputs * C, H, W] for x_t [B, C, H, W].

        Raises:
            ValueError: `x_t` does not have the configured C and patch.
        """
        config, (e,) = self.config, condition
        if config.conditional:
            x_t, seen = with_seen(x_t, config.in_channels).split(
                (config.in_channels, SEEN * config.in_channels), 1
            )
        config.check_image(tuple(x_t.shape[1:]))
        dtype = self.conv_in.weight.dtype
        image = with_fourier(x_t, config.fourier).to(dtype)
        inputs = torch.cat((image, seen.to(dtype)), 1) if config.conditional else image
        h = self.conv_in(F.pixel_unshuffle(inputs, config.patch))
        skips = [h]
        for down in self.down:
            skips += down(skips[-1], e)
        h = self.mid(skips[-1], e)
        for up in self.up:
            h = up(h, e, skips)
        out = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), config.patch)
        return self._weigh(out, image) if config.gates else out

    def _weigh(self, out: Tensor, image: Tensor) -> Tensor:
        """h_0 + sum_k h_k feature_k: [B, (1 + K) outputs C, H, W] -> [B, outputs C, H, W]."""
        config = self.config
        features = image.unflatten(1, (-1, 1, config.in_channels))[:, 1:]  # [B, K, 1, C, H, W]
        weights = out.unflatten(1, (-1, config.outputs, config.in_channels))
        weighed: Tensor = (weights[:, 0] + (weights[:, 1:] * features).sum(1)).flatten(1, 2)
        return weighed
