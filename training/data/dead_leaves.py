"""Dead leaves: overlapping grey discs with power-law radii, as 8-bit [1, side, side] images.

    leaves k = 1, 2, ... from the front:   p(r_k) ~ r_k^-3 on [r_min, r_max],   g_k ~ U{greys},
    centres uniform in the plane;   x_0 = round(g of the first leaf that holds the pixel + noise n)

The image is a window of a stationary one. It is simulated exactly: leaves are drawn from front to
back until every pixel is covered (Kendall and Thönnes 1999), and only those that can touch the
window, whose centres lie in the window dilated by r:

    p(r) ~ r^-3 (side + 2 r)^2 = side^2 r^-3 + 4 side r^-2 + 4 r^-1,   centres uniform there

Two pixels at distance d lie on one leaf with probability gamma(d) / (2 gamma(0) - gamma(d)), where
gamma is the mean overlap of two discs at that distance; this is their correlation, up to the noise.
Between r_min and r_max gamma falls by the same amount per octave, so the image has no
characteristic scale.

A pixel belongs to a leaf if its centre does, without antialiasing. Without noise the image is
piecewise constant and has no density. With noise, its entropy is at least the noise's,
log2(noise sqrt(2 pi e)) = 4.05 bits per pixel at the default of 4 levels, and the paper's K, the
log-density at unit variance, is at most log2(deviation / (noise sqrt(2 pi e))) = 1.97.

Sohl-Dickstein et al. (2015, Section 3.2.3 and Table 1) report K = 1.489 bits per pixel for another
generator's images, which is not comparable; `training.evaluate.patches` fits a baseline to these.
Source: Jeulin's and Matheron's model; Lee, Mumford and Huang, "Occlusion models for natural images"
(IJCV 2001), for r^-3 and its consequences.
"""

import math
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from diffusion.noise import Stream, counter_noise
from training.data.dataset import Dataset, DataSetConfig, Split, checksum, eight_bit, split_seed

LEAVES = 32  # per batch
CODES = 512  # more than 1 + grey; CODES (LEAVES + 1) fits into 16 bits
IMAGES = 1024  # per batch; one layer of them fits in the cache
TAILS = 4.0  # margin of the greys to 0 and 255, in standard deviations of the noise


class DeadLeavesConfig(DataSetConfig):
    """Images of `side` pixels; radii `r_min`..`r_max` in pixels; `greys` and `noise` in levels."""

    kind: Literal["deadleaves"] = "deadleaves"
    side: int = Field(default=16, gt=1)
    r_min: float = Field(default=2.0, gt=0)
    r_max: float = Field(default=32.0, gt=0)
    greys: tuple[int, int] = (16, 239)
    noise: float = Field(default=4.0, ge=0)
    train: int = Field(default=50_000, gt=0)
    valid: int = Field(default=2_000, gt=0)
    test: int = Field(default=10_000, gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.r_min >= self.r_max:
            raise ValueError(f"r_min is below r_max, came {self.r_min} and {self.r_max}")
        low, high = self.greys
        margin = TAILS * self.noise
        if not margin <= low < high <= 255 - margin:
            raise ValueError(
                f"with noise {self.noise} greys must ascend within {margin:g}..{255 - margin:g}, "
                f"so that 0..255 does not clip the noise; got {low} and {high}"
            )
        return self

    @override
    def load(self) -> Dataset:
        """Draw the three splits; uint8 [rows, 1, side, side]."""

        def rows(split: Split, count: int) -> Tensor:
            return draw(self, split_seed(self.seed, split), torch.arange(count))

        train, valid = rows("train", self.train), rows("valid", self.valid)
        test = rows("test", self.test)
        return Dataset(
            name=self.kind,
            space=eight_bit((1, self.side, self.side)),
            train=train,
            valid=valid,
            test=test,
            checksum=checksum(train, valid, test),
        )


def radii(u: Tensor, side: int, r_min: float, r_max: float) -> Tensor:
    """Radii of leaves that can touch the window, from u ~ U(0, 1), in u's shape.

    The density's three terms form a mixture of power laws. u picks one of them; its remainder,
    again uniform, goes through that term's inverse distribution function.
    """
    low, high = r_min**-2, r_max**-2
    mass = torch.tensor(
        [
            side**2 * (low - high) / 2,
            4 * side * (1 / r_min - 1 / r_max),
            4 * math.log(r_max / r_min),
        ],
        dtype=torch.float64,
    )
    ends = mass.cumsum(0) / mass.sum()
    start = torch.cat((ends.new_zeros(1), ends[:-1]))
    # u has only float32 resolution, about 2^23 values; float64 avoids further rounding.
    which = torch.bucketize(u.double(), ends[:-1])
    rest = ((u.double() - start[which]) / (ends - start)[which]).to(u.dtype)
    cubic = (low - rest * (low - high)).rsqrt()
    square = 1 / (1 / r_min - rest * (1 / r_min - 1 / r_max))
    inverse = r_min * (r_max / r_min) ** rest
    return torch.where(which == 0, cubic, torch.where(which == 1, square, inverse))


def draw(config: DeadLeavesConfig, seed: int, rows: Tensor) -> Tensor:
    """Draw the images numbered `rows` (int64 [N]), uint8 [N, 1, side, side].

    An image depends only on the seed and its number. Noise step 0 gives the grey noise, each later
    step LEAVES leaves.
    """
    side = config.side
    images = torch.empty(len(rows), side, side, dtype=torch.uint8)
    for start in range(0, len(rows), IMAGES):
        part = rows[start : start + IMAGES]
        grey = _cover(config, seed, part)
        if config.noise:
            normal = counter_noise(seed, part, 0, Stream.DATA).normal((side, side))
            grey = grey + config.noise * normal
        images[start : start + IMAGES] = grey.round().clamp(0, 255).to(torch.uint8)
    return images[:, None]


def _cover(config: DeadLeavesConfig, seed: int, rows: Tensor) -> Tensor:
    """Draw the greys without noise, float32 [N, side, side]."""
    images = torch.zeros(len(rows), config.side, config.side)
    place, layer, step = torch.arange(len(rows)), images.to(torch.int16), 0
    while len(place):
        step += 1
        behind = _paint(config, seed, rows[place], step)
        layer = torch.where(layer == 0, behind, layer)
        bare = (layer == 0).flatten(1).any(1)
        images[place[~bare]] = layer[~bare].float() - 1
        place, layer = place[bare], layer[bare]
    return images


def _paint(config: DeadLeavesConfig, seed: int, rows: Tensor, step: int) -> Tensor:
    """Draw LEAVES leaves per image: 1 + grey, 0 where uncovered, int16 [N, side, side]."""
    side, (low, high) = config.side, config.greys
    # The images are the innermost axis, which makes the inner loops long.
    drawn = counter_noise(seed, rows, step, Stream.DATA).uniform((LEAVES, 4))
    u = drawn.permute(2, 1, 0).contiguous()  # [4, LEAVES, N]
    r = radii(u[0], side, config.r_min, config.r_max)
    axis = torch.arange(side, dtype=u.dtype)[:, None]
    # From a leaf's centre to each pixel's, [LEAVES, side, N]; the window is [-1/2, side - 1/2]^2.
    x, y = (axis - (v * (side + 2 * r) - r - 0.5)[:, None] for v in u[1:3])
    half_chord = (r[:, None] ** 2 - y**2).clamp(min=0).sqrt()
    x, grey = x.abs(), (1 + low + (u[3] * (high - low + 1)).floor()).to(torch.int16)
    # The front leaf has the greatest code: torch.maximum is much faster here than torch.where.
    code = grey + CODES * torch.arange(LEAVES, 0, -1, dtype=torch.int16)[:, None]
    layer = torch.zeros(side, side, len(rows), dtype=torch.int16)
    for k in range(LEAVES):
        held = (x[k] < half_chord[k, :, None]).to(torch.int16)
        torch.maximum(layer, held.mul_(code[k]), out=layer)
    return layer.remainder_(CODES).permute(2, 0, 1).contiguous()
