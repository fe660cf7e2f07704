"""The layers of DDPM's U-Net (Ho, Jain and Abbeel 2020, appendix B), on [B, channels, H, W]."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shared:
    """What all of a network's blocks have in common.

    Attributes:
        time_channels: width of the time embedding.
        groups, eps: of every GroupNorm.
        dropout: inside the residual blocks.
        head_dim: channels of an attention head, None for a single head.
    """

    time_channels: int
    groups: int
    eps: float
    dropout: float
    head_dim: int | None

    def norm(self, channels: int) -> nn.GroupNorm:
        """A GroupNorm of so many channels."""
        return nn.GroupNorm(self.groups, channels, eps=self.eps)


class Residual(nn.Module):
    """shortcut(h) + conv2(dropout(silu(norm2(conv1(silu(norm1(h))) + time(e)))))."""

    def __init__(self, shared: Shared, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = shared.norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(shared.time_channels, c_out)
        self.norm2 = shared.norm(c_out)
        self.dropout = nn.Dropout(shared.dropout)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """h [B, c_in, H, W] and e [B, time_channels], after its SiLU -> [B, c_out, H, W]."""
        y = self.conv1(F.silu(self.norm1(h))) + self.time(e)[:, :, None, None]
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        out: Tensor = self.shortcut(h) + y
        return out


class Attention(nn.Module):
    """h + out(softmax(q k^T / sqrt(head_dim)) v), over the pixels, a head at a time."""

    def __init__(self, shared: Shared, channels: int) -> None:
        super().__init__()
        self.heads = channels // (shared.head_dim or channels)
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
    """Half the height and width, by a 3x3 convolution of stride 2."""

    def __init__(self, channels: int, padding: int) -> None:
        super().__init__()
        # DDPM's TensorFlow code pads "SAME", which for stride 2 means right and bottom only.
        self.pad = (0, 1, 0, 1) if padding == 0 else (0, 0, 0, 0)
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, channels, H, W] -> [B, channels, H / 2, W / 2], rounded up (down: padding 0)."""
        out: Tensor = self.conv(F.pad(h, self.pad) if any(self.pad) else h)
        return out


class Upsample(nn.Module):
    """Each pixel repeated (twice, where the new size is even), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor, size: torch.Size) -> Tensor:
        """h [B, channels, H, W] -> [B, channels, *size]; size: that of the next skip."""
        out: Tensor = self.conv(F.interpolate(h, size=size, mode="nearest"))
        return out
