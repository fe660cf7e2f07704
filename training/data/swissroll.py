"""The Swiss roll in the plane, with isotropic noise, scaled to unit variance in closed form.

    u ~ U[0, 1],  phi = 3/2 pi (1 + 2 u),  c(phi) = k (phi cos phi - 2, phi sin phi - 2 / (3 pi)),
    x_0 = c(phi) + noise n,   n ~ N(0, I).

The roll is scikit-learn's `make_swiss_roll` without its third axis. Its mean is (2, 2 / (3 pi)) and
its total variance 39/4 pi^2 - 4 - 4 / (9 pi^2), so that with

    k = sqrt(2 (1 - noise^2) / (39/4 pi^2 - 4 - 4 / (9 pi^2)))

the two coordinates of x_0 have mean 0 and average variance 1 exactly.
Source: Sohl-Dickstein et al. 2015, Section 3.1.1 and Figure 1.
"""

import math
from functools import cache
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.space import DataSpace
from training.data.dataset import Dataset, DataSetConfig, Split, checksum, generator

FIRST, LAST = 1.5 * math.pi, 4.5 * math.pi
MEAN = (2.0, 2.0 / (3.0 * math.pi))
#: Noise below which windings, 0.94 apart, do not overlap.
NARROW = 0.03
TOTAL_VARIANCE = 9.75 * math.pi**2 - MEAN[0] ** 2 - MEAN[1] ** 2


class SwissRollConfig(DataSetConfig):
    """The Swiss roll; `noise` is a standard deviation, in units where the data have variance 1."""

    kind: Literal["swissroll"] = "swissroll"
    noise: float = Field(default=0.003, gt=0, lt=1)
    train: int = Field(default=200_000, gt=0)
    valid: int = Field(default=10_000, gt=0)
    test: int = Field(default=10_000, gt=0)
    seed: int = Field(default=0, ge=0)

    @override
    def load(self) -> Dataset:
        """Draw the three splits; float32 [rows, 2]."""
        roll = SwissRoll(self.noise)

        def rows(split: Split, count: int) -> Tensor:
            return roll.draw(count, generator(self.seed, split))[0].float()

        train, valid = rows("train", self.train), rows("valid", self.valid)
        test = rows("test", self.test)
        return Dataset(
            name=self.kind,
            space=DataSpace(kind="vector", shape=(2,), shift=0.0, scale=1.0, levels=None),
            train=train,
            valid=valid,
            test=test,
            checksum=checksum(train, valid, test),
            entropy=_entropy(self.noise),
            log_density=roll.log_density,
        )


class SwissRoll:
    """The distribution, with draws, exact log-density and entropy."""

    def __init__(self, noise: float) -> None:
        self.noise = noise
        self.scale = math.sqrt(2.0 * (1.0 - noise**2) / TOTAL_VARIANCE)

    def curve(self, phi: Tensor) -> Tensor:
        """c(phi), float64 [..., 2]."""
        x = phi * torch.cos(phi) - MEAN[0]
        y = phi * torch.sin(phi) - MEAN[1]
        return self.scale * torch.stack((x, y), dim=-1)

    def speed(self, phi: Tensor) -> Tensor:
        """|dc / dphi| = k sqrt(1 + phi^2)."""
        return self.scale * torch.sqrt(1.0 + phi**2)

    def draw(self, rows: int, stream: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw x_0 [rows, 2], and return it with its phi [rows] and n [rows, 2], float64."""
        u = torch.rand(rows, generator=stream, dtype=torch.float64)
        n = torch.randn(rows, 2, generator=stream, dtype=torch.float64)
        phi = FIRST + (LAST - FIRST) * u
        return self.curve(phi) + self.noise * n, phi, n

    def nodes(self, width: float | None = None) -> tuple[Tensor, Tensor]:
        """Gauss-Legendre nodes and weights in phi: eight nodes per panel of two noise widths.

        On such a panel the integrand is a Gaussian bump at least half as wide as the panel, for
        which eight nodes give a relative error of about 1e-9.
        """
        length = (LAST - FIRST) * float(self.speed(torch.tensor(LAST, dtype=torch.float64)))
        panels = max(64, math.ceil(length / (2.0 * (self.noise if width is None else width))))
        points, weights = legendre(8)
        edges = torch.linspace(FIRST, LAST, panels + 1, dtype=torch.float64)
        half = (edges[1:] - edges[:-1]) / 2
        middle = (edges[1:] + edges[:-1]) / 2
        phi = middle[:, None] + half[:, None] * points
        return phi.flatten(), (half[:, None] * weights).flatten()

    def posterior(self, y: Tensor, added: float, rows_at_once: int = 1024) -> tuple[Tensor, Tensor]:
        """Mean [rows, 2] and covariance [rows, 2, 2] of x_0 given y = x_0 + added n, float64.

        Given y and phi, x_0 ~ N(c + g (y - c), g added^2) with g = noise^2 / (noise^2 + added^2);
        phi given y is integrated by quadrature.
        """
        gain = self.noise**2 / (self.noise**2 + added**2)
        means, covariances = [], []
        for chunk in y.to(torch.float64).split(rows_at_once):
            exponent, centre = self._joint(chunk, math.hypot(self.noise, added))
            share = exponent.softmax(1)
            mean = torch.einsum("bn,bni->bi", share, centre)
            off = centre - mean[:, None]
            spread = torch.einsum("bn,bni,bnj->bij", share, off, off)
            own = gain * added**2 * torch.eye(2, dtype=torch.float64)
            means.append(mean + gain * (chunk - mean))
            covariances.append((1.0 - gain) ** 2 * spread + own)
        return torch.cat(means), torch.cat(covariances)

    def log_density(self, x: Tensor, rows_at_once: int = 1024) -> Tensor:
        """log p(x) in nats, float64 [rows], by quadrature over phi; x is [rows, 2]."""
        chunks = x.to(torch.float64).split(rows_at_once)
        parts = [self._joint(chunk, self.noise)[0].logsumexp(1) for chunk in chunks]
        return torch.cat(parts)

    def _joint(self, y: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """log(weight p(phi) N(y; c(phi), width^2)) and c(phi) at nodes in phi: [rows, n(, 2)].

        If the width is small compared with the distance between windings, the nodes cover only the
        neighbourhood of each winding's nearest point to y; the rest is below 1e-30 of the total.
        """
        if width < NARROW:
            phi, weight = self._nodes_near(y, width)
        else:
            phi, weight = (nodes.expand(len(y), -1) for nodes in self.nodes(width))
        centre = self.curve(phi)
        # |y - c|^2 by subtraction: expanding the square would lose too many digits.
        square = (y[:, None, :] - centre).square().sum(-1)
        exponent = -0.5 * square / width**2 + torch.log(weight / (LAST - FIRST))
        return exponent - math.log(2.0 * math.pi * width**2), centre

    def _nodes_near(self, x: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Nodes and weights [rows, n] within 12 widths of each winding's nearest point."""
        centre = torch.tensor(MEAN, dtype=torch.float64)
        raw = x / self.scale + centre
        turns = 2.0 * math.pi * torch.arange(3, dtype=torch.float64)
        start = torch.atan2(raw[:, 1], raw[:, 0])[:, None] + turns  # [rows, windings]
        there = (start >= FIRST - math.pi) & (start < LAST + math.pi)
        start = start.clamp(FIRST, LAST)
        phi = start
        for _ in range(6):  # Gauss-Newton steps to the nearest point of this winding
            along = self.scale * torch.stack(
                (phi.cos() - phi * phi.sin(), phi.sin() + phi * phi.cos()), dim=-1
            )
            off = x[:, None, :] - self.curve(phi)
            move = (off * along).sum(-1) / along.square().sum(-1)
            phi = (phi + move).clamp(start - 1.0, start + 1.0).clamp(FIRST, LAST)
        reach = 12.0 * width / self.speed(phi)
        low, high = (phi - reach).clamp(min=FIRST), (phi + reach).clamp(max=LAST)
        points, weights = legendre(64)
        half, middle = (high - low) / 2, (high + low) / 2
        nodes = middle[..., None] + half[..., None] * points
        share = torch.where(there, half, 0.0)[..., None] * weights
        return nodes.flatten(1), share.flatten(1)

    def entropy(self, rows: int = 4096, seed: int = 0) -> tuple[float, float]:
        """(h, standard error) in nats, h = E[-log p(x)].

        Control variate: far from the ends and other windings, -log p(x) is g = log(3 pi) + log
        speed(phi) + 1/2 log(2 pi noise^2) + (normal component of n)^2 / 2, whose mean is known
        exactly. Only the difference is sampled, so a few thousand rows give at least three digits.
        """
        x, phi, n = self.draw(rows, generator(seed, "test"))
        normal = torch.stack(
            (torch.sin(phi) + phi * torch.cos(phi), phi * torch.sin(phi) - torch.cos(phi)), dim=-1
        )
        across = (normal * n).sum(-1) ** 2 / (1.0 + phi**2)
        control = torch.log(self.speed(phi)) + across / 2
        nodes, weight = self.nodes()
        mean_log_speed = float((weight * torch.log(self.speed(nodes))).sum() / (LAST - FIRST))
        difference = -self.log_density(x) - control
        exact = mean_log_speed + 0.5
        error = float(difference.std() / math.sqrt(rows))
        return float(difference.mean()) + exact, error


@cache
def _entropy(noise: float) -> tuple[float, float]:
    """The entropy and its standard error, cached because it takes half a second."""
    return SwissRoll(noise).entropy()


def legendre(order: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre points and weights on [-1, 1] (Golub and Welsch 1969), float64 [order]."""
    k = torch.arange(1, order, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return points, 2 * vectors[0] ** 2
