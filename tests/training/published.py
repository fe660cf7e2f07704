"""Nichol and Dhariwal's UNetModel (2021) as it is published: tensors by name, and their function.

Written from the papers and the libraries' names alone, with nothing of ours in it, so that a
conversion can be held against it. The bits a dimension are those of improved-diffusion's formulas.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Layer = tuple[str, int, int]  # what it is, and channels in and out


@dataclass
class Published:
    """The architecture for some flags."""

    width: int = 32
    multiples: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attended: tuple[int, ...] = (2,)  # by how much the sides are divided
    heads: int = 2
    head_channels: int = -1
    learn_sigma: bool = False
    scale_shift: bool = True
    updown: bool = False
    new_order: bool = False
    layers: dict[str, Layer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lay the layers out, in the order in which they are run."""
        width, skips, at, sides = self.width, [self.width], 1, 1
        self.layers["input_blocks.0.0"] = ("conv", 3, width)
        for level, multiple in enumerate(self.multiples):
            for _ in range(self.blocks):
                wider = multiple * self.width
                self.layers[f"input_blocks.{at}.0"] = ("res", width, wider)
                if sides in self.attended:
                    self.layers[f"input_blocks.{at}.1"] = ("attn", wider, wider)
                width, at = wider, at + 1
                skips.append(width)
            if level < len(self.multiples) - 1:
                kind = "down" if self.updown else "op"
                self.layers[f"input_blocks.{at}.0"] = (kind, width, width)
                sides, at = 2 * sides, at + 1
                skips.append(width)
        for i, kind in enumerate(("res", "attn", "res")):
            self.layers[f"middle_block.{i}"] = (kind, width, width)
        at = 0
        for level, multiple in reversed(list(enumerate(self.multiples))):
            for block in range(self.blocks + 1):
                wider, place = multiple * self.width, 1
                self.layers[f"output_blocks.{at}.0"] = ("res", width + skips.pop(), wider)
                if sides in self.attended:
                    self.layers[f"output_blocks.{at}.1"] = ("attn", wider, wider)
                    place = 2
                if level and block == self.blocks:
                    kind = "up" if self.updown else "conv_up"
                    self.layers[f"output_blocks.{at}.{place}"] = (kind, wider, wider)
                    sides //= 2
                width, at = wider, at + 1

    def tensors(self) -> dict[str, Tensor]:
        """Random ones."""
        generator = torch.Generator().manual_seed(4)
        found: dict[str, Tensor] = {}

        def add(name: str, *shape: int) -> None:
            found[f"{name}.weight"] = 0.1 * torch.randn(shape, generator=generator)
            found[f"{name}.bias"] = 0.1 * torch.randn(shape[0], generator=generator)

        wide = 4 * self.width
        add("time_embed.0", wide, self.width)
        add("time_embed.2", wide, wide)
        for name, (kind, c_in, c_out) in self.layers.items():
            if kind == "conv":
                add(name, c_out, c_in, 3, 3)
            elif kind == "attn":
                add(f"{name}.norm", c_in)
                add(f"{name}.qkv", 3 * c_in, c_in, 1)
                add(f"{name}.proj_out", c_in, c_in, 1)
            elif kind in ("op", "conv_up"):
                add(f"{name}.{'op' if kind == 'op' else 'conv'}", c_out, c_in, 3, 3)
            else:
                add(f"{name}.in_layers.0", c_in)
                add(f"{name}.in_layers.2", c_out, c_in, 3, 3)
                add(f"{name}.emb_layers.1", c_out * (1 + self.scale_shift), wide)
                add(f"{name}.out_layers.0", c_out)
                add(f"{name}.out_layers.3", c_out, c_out, 3, 3)
                if c_in != c_out:
                    add(f"{name}.skip_connection", c_out, c_in, 1, 1)
        add("out.0", self.width)
        add("out.2", 3 * (1 + self.learn_sigma), self.width, 3, 3)
        return found

    def __call__(self, tensors: dict[str, Tensor], x: Tensor, time: Tensor) -> Tensor:
        """x [B, 3, H, W] and the time that they embed [B] -> [B, 3 or 6, H, W]."""

        def of(name: str) -> tuple[Tensor, Tensor]:
            return tensors[f"{name}.weight"], tensors[f"{name}.bias"]

        def norm(name: str, h: Tensor) -> Tensor:
            return F.group_norm(h, 32, *of(name), eps=1e-5)

        half = self.width // 2
        angle = time[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        e = torch.cat((angle.cos(), angle.sin()), 1)
        e = F.linear(F.silu(F.linear(e, *of("time_embed.0"))), *of("time_embed.2"))

        def residual(name: str, kind: str, h: Tensor) -> Tensor:
            y = F.silu(norm(f"{name}.in_layers.0", h))
            if kind == "down":
                h, y = F.avg_pool2d(h, 2), F.avg_pool2d(y, 2)
            if kind == "up":
                h, y = (F.interpolate(part, scale_factor=2) for part in (h, y))
            y = F.conv2d(y, *of(f"{name}.in_layers.2"), padding=1)
            of_time = F.linear(F.silu(e), *of(f"{name}.emb_layers.1"))[..., None, None]
            if self.scale_shift:
                scale, shift = of_time.chunk(2, 1)
                y = norm(f"{name}.out_layers.0", y) * (1 + scale) + shift
            else:
                y = norm(f"{name}.out_layers.0", y + of_time)
            y = F.conv2d(F.silu(y), *of(f"{name}.out_layers.3"), padding=1)
            skip = f"{name}.skip_connection"
            return y + (F.conv2d(h, *of(skip)) if f"{skip}.weight" in tensors else h)

        def attend(name: str, h: Tensor) -> Tensor:
            rows, channels = h.shape[:2]
            heads = self.heads if self.head_channels == -1 else channels // self.head_channels
            qkv = F.conv1d(norm(f"{name}.norm", h).flatten(2), *of(f"{name}.qkv"))
            if self.new_order:
                q, k, v = (part.unflatten(1, (heads, -1)) for part in qkv.chunk(3, 1))
            else:
                q, k, v = qkv.unflatten(1, (heads, -1)).chunk(3, 2)
            scores = torch.einsum("bhct,bhcs->bhts", q, k) / math.sqrt(channels / heads)
            y = torch.einsum("bhts,bhcs->bhct", scores.softmax(-1), v).reshape(rows, channels, -1)
            return h + F.conv1d(y, *of(f"{name}.proj_out")).view_as(h)

        h, skips = x, []
        blocks = {name.rpartition(".")[0] for name in self.layers}
        for block in dict.fromkeys(name.rpartition(".")[0] for name in self.layers):
            assert block in blocks
            if block.startswith("output"):
                h = torch.cat((h, skips.pop()), 1)
            for name, (kind, _, _) in self.layers.items():
                if name.rpartition(".")[0] != block:
                    continue
                if kind == "conv":
                    h = F.conv2d(h, *of(name), padding=1)
                elif kind == "attn":
                    h = attend(name, h)
                elif kind == "op":
                    h = F.conv2d(h, *of(f"{name}.op"), stride=2, padding=1)
                elif kind == "conv_up":
                    h = F.conv2d(F.interpolate(h, scale_factor=2), *of(f"{name}.conv"), padding=1)
                else:
                    h = residual(name, kind, h)
            if block.startswith("input"):
                skips.append(h)
        assert not skips
        return F.conv2d(F.silu(norm("out.0", h)), *of("out.2"), padding=1)


def published_bits(
    outputs: list[Tensor], x_0: Tensor, x_t: list[Tensor], betas: Tensor, flags: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """improved-diffusion's bits a dimension of each step [T, B], t = 1 first, and the prior's [B].

    Its decoder approximates the normal distribution function by a tanh (its losses.py).

    Args:
        outputs: of the network at each x_t.
        x_0: [B, 3, H, W], from -1 to 1.
        x_t: at t = 1..T.
        betas: float64 [T].
        flags: learn_sigma, sigma_small, predict_xstart.
    """
    x_0, found = x_0.double(), []
    cumulative = (1 - betas).cumprod(0)
    before = torch.cat((torch.ones(1, dtype=torch.float64), cumulative[:-1]))
    posterior = betas * (1 - before) / (1 - cumulative)
    small = torch.cat((posterior[1:2], posterior[1:])).log()
    large = torch.cat((posterior[1:2], betas[1:])).log()
    of_start = betas * before.sqrt() / (1 - cumulative)
    of_now = (1 - before) * (1 - betas).sqrt() / (1 - cumulative)
    for i, (output, x) in enumerate(zip(outputs, x_t, strict=True)):
        output, x = output.double(), x.double()
        log_var = small[i] if flags.get("sigma_small") else large[i]
        if flags.get("learn_sigma"):
            output, v = output.chunk(2, 1)
            part = (v + 1) / 2
            log_var = part * betas[i].log() + (1 - part) * small[i]
        noise = (1 / cumulative[i] - 1).sqrt() * output
        start = output if flags.get("predict_xstart") else x / cumulative[i].sqrt() - noise
        mean = of_start[i] * start.clamp(-1, 1) + of_now[i] * x
        log_var = torch.as_tensor(log_var).expand_as(mean)
        if i:
            true = of_start[i] * x_0 + of_now[i] * x
            value = 0.5 * (
                -1 + log_var - small[i] + (small[i] - log_var).exp()
                + (true - mean).square() * (-log_var).exp()
            )  # fmt: skip
        else:
            precision = (-0.5 * log_var).exp()
            up, down = (
                0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
                for u in (precision * (x_0 - mean + w) for w in (1 / 255, -1 / 255))
            )
            inner = (up - down).clamp(min=1e-12).log()
            ends = torch.where(x_0 > 0.999, (1 - down).clamp(min=1e-12).log(), inner)
            value = -torch.where(x_0 < -0.999, up.clamp(min=1e-12).log(), ends)
        found.append(value.flatten(1).mean(1) / math.log(2))
    last = 1 - cumulative[-1]
    prior = 0.5 * (-1 - last.log() + last + cumulative[-1] * x_0.square())
    return torch.stack(found), prior.flatten(1).mean(1) / math.log(2)
