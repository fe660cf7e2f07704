"""The layers of DDPM's U-Net (Ho, Jain and Abbeel 2020, appendix B), on [B, channels, H, W]."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shared:
    """The settings shared by all blocks of a network.

    Attributes:
        time_channels: width of the time embedding.
        groups, eps: settings of every GroupNorm.
        dropout: inside the residual blocks.
        head_dim: channels per attention head; None to use `heads` heads instead.
        scale_shift: scale and shift the normalised features by the time, instead of adding it to
            them before the norm.
    """

    time_channels: int
    groups: int
    eps: float
    dropout: float
    head_dim: int | None
    heads: int
    scale_shift: bool

    def norm(self, channels: int) -> nn.GroupNorm:
        """Build a GroupNorm over `channels` channels."""
        return nn.GroupNorm(self.groups, channels, eps=self.eps)


class ResidualLayers(nn.Module):
    """The layers of a residual block, which may keep or change the resolution.

    With `scale_shift`, norm2(y) (1 + scale(e)) + shift(e) replaces norm2(y + time(e)) (Nichol and
    Dhariwal 2021, appendix A).
    """

    def __init__(self, shared: Shared, c_in: int, c_out: int) -> None:
        super().__init__()
        self.scale_shift = shared.scale_shift
        self.norm1 = shared.norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(shared.time_channels, c_out * (1 + self.scale_shift))
        self.norm2 = shared.norm(c_out)
        self.dropout = nn.Dropout(shared.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def first(self, h: Tensor) -> Tensor:
        """silu(norm1(h)), [B, c_in, H, W]."""
        return F.silu(self.norm1(h))

    def rest(self, h: Tensor, y: Tensor, e: Tensor) -> Tensor:
        """shortcut(h) + conv2(dropout(silu(norm2(conv1(y) + time(e))))), [B, c_out, H, W]."""
        y, time = self.conv1(y), self.time(e)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            y = torch.addcmul(shift, self.norm2(y), 1 + scale)
        else:
            y = self.norm2(y + time)
        y = self.conv2(self.dropout(F.silu(y)))
        out: Tensor = self.shortcut(h) + y
        return out


class Residual(ResidualLayers):
    """A block shortcut(h) + conv2(dropout(silu(norm2(conv1(silu(norm1(h))) + time(e)))))."""

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h [B, c_in, H, W] and e [B, time_channels], after its SiLU -> [B, c_out, H, W]."""
        return self.rest(h, self.first(h), e)


class ResidualDown(ResidualLayers):
    """A residual block that averages 2x2 pixels (Dhariwal and Nichol 2021, after BigGAN)."""

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h [B, c_in, H, W] -> [B, c_out, H / 2, W / 2], rounded up."""
        y = self.first(h)
        return self.rest(_halved(h), _halved(y), e)


class ResidualUp(ResidualLayers):
    """A residual block that repeats pixels to double the resolution."""

    def forward(self, h: Tensor, e: Tensor, size: torch.Size) -> Tensor:
        """h [B, c_in, H, W] -> [B, c_out, *size], where `size` is the next skip's."""
        y = self.first(h)
        return self.rest(_repeated(h, size), _repeated(y, size), e)


def _halved(h: Tensor) -> Tensor:
    return F.avg_pool2d(h, 2, ceil_mode=True)


def _repeated(h: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(h, size=size, mode="nearest")


class Attention(nn.Module):
    """Self-attention over pixels, h + out(softmax(q k^T / sqrt(head_dim)) v) with several heads."""

    def __init__(self, shared: Shared, channels: int) -> None:
        super().__init__()
        self.heads = channels // shared.head_dim if shared.head_dim else shared.heads
        self.norm = shared.norm(channels)
        self.q = nn.Linear(channels, channels)
        self.k = nn.Linear(channels, channels)
        self.v = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, channels, H, W] -> the same shape."""
        pixels = self.norm(h).flatten(2).transpose(1, 2)  # [B, H W, channels]
        q, k, v = (
            layer(pixels).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)  # [B, heads, H W, head_dim]
        y = self.out(y.transpose(1, 2).flatten(2))
        out: Tensor = h + y.transpose(1, 2).unflatten(-1, h.shape[-2:])
        return out


class Downsample(nn.Module):
    """Halve the height and width by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        # DDPM's TensorFlow code pads "SAME", which for stride 2 means right and bottom only.
        self.pad = (0, 1, 0, 1) if padding == 0 else (0, 0, 0, 0)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, h: Tensor, _e: Tensor) -> Tensor:
        """h [B, channels, H, W] -> [B, channels, H / 2, W / 2], rounded up (down: padding 0)."""
        out: Tensor = self.conv(F.pad(h, self.pad) if any(self.pad) else h)
        return out


class Upsample(nn.Module):
    """Double the height and width by repeating pixels, then apply a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, _e: Tensor, size: torch.Size) -> Tensor:
        """h [B, channels, H, W] -> [B, channels, *size], where `size` is the next skip's."""
        out: Tensor = self.conv(_repeated(h, size))
        return out
