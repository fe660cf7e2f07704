"""Rows of several kinds of elements, side by side: reals, and categories as one-hot blocks.

    x = [x_1 x_2 | 0 1 0 | 1 0]        each part has a distribution of its own

Parts are independent given what they are given, so densities add up and draws are side by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.distributions import Cells, Distribution, Tilt
from diffusion.noise import DrawnNoise, Noise


@final
@dataclass(frozen=True)
class Mixed(Distribution):
    """Independent parts side by side; part i is over [B, D_i], the whole over [B, sum D_i]."""

    continuous = False  # not all of it has a density
    parts: tuple[Distribution, ...]

    @property
    def widths(self) -> list[int]:
        """How many elements each part has."""
        return [part.mean.shape[1] for part in self.parts]

    @property
    def mean(self) -> Tensor:  # type: ignore[override]
        """The mean of each element, [B, D]."""
        return torch.cat([part.mean for part in self.parts], 1)

    @property
    def var(self) -> Tensor:  # type: ignore[override]
        """The variance of each element, [B, D]."""
        return torch.cat([part.var.expand_as(part.mean) for part in self.parts], 1)

    @override
    def rows(self, index: slice | Tensor) -> Self:
        return type(self)(tuple(part.rows(index) for part in self.parts))

    @override
    def each(self, act: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(tuple(part.each(act) for part in self.parts))

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        each = zip(*(whole.parts for whole in parts), strict=True)
        return cls(tuple(type(group[0]).joined(group) for group in each))

    @override
    def sample(self, noise: Noise) -> Tensor:
        """Draw each part with its own elements of the noise (`Noise.mixed`), [B, D]."""
        draws = noise.mixed(self.uniform)
        each = zip(self.parts, draws.split(self.widths, 1), strict=True)
        return torch.cat([part.sample(DrawnNoise(own)) for part, own in each], 1)

    @property
    def uniform(self) -> Tensor:
        """Which elements are drawn from uniform numbers rather than normal ones, bool [D]."""
        kinds = torch.tensor([not part.continuous for part in self.parts])
        found = kinds.repeat_interleave(torch.tensor(self.widths))
        return found.to(self.parts[0].mean.device)

    @override
    def log_probs(self, x: Tensor) -> Tensor:
        each = zip(self.parts, x.split(self.widths, 1), strict=True)
        return torch.cat([part.log_probs(own) for part, own in each], 1)

    @override
    def log_masses(self, x: Tensor, cells: Cells | None) -> Tensor:
        assert cells is not None  # some elements have them
        each = zip(self.parts, *(part.split(self.widths, 1) for part in (x, *cells)), strict=True)
        found = [part.log_masses(own, (below, above)) for part, own, below, above in each]
        return torch.cat(found, 1)

    @override
    def kls(self, other: Self) -> Tensor:
        pairs = zip(self.parts, other.parts, strict=True)
        return torch.cat([mine.kls(theirs) for mine, theirs in pairs], 1)

    @override
    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    @override
    def multiply(self, other: Self) -> tuple[Self, Tensor]:
        pairs = zip(self.parts, other.parts, strict=True)
        return self._products([mine.multiply(theirs) for mine, theirs in pairs])

    @override
    def observe(self, factor: Self) -> tuple[Self, Tensor]:
        pairs = zip(self.parts, factor.parts, strict=True)
        return self._products([mine.observe(theirs) for mine, theirs in pairs])

    @property
    @override
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    @override
    def known(self) -> Tensor:
        return torch.cat([part.known for part in self.parts], 1)

    @property
    @override
    def values(self) -> Tensor:
        return torch.cat([part.values for part in self.parts], 1)

    @property
    @override
    def noise(self) -> Tensor:
        return torch.cat([part.noise for part in self.parts], 1)

    @property
    @override
    def noisy(self) -> bool:
        return any(part.noisy for part in self.parts)

    @property
    @override
    def exact(self) -> Tensor:
        return torch.cat([part.exact for part in self.parts], 1)

    @override
    def told(self) -> Tensor:
        """The three inputs of every element, in the order of one part's."""
        each = zip(*(part.told().chunk(3, 1) for part in self.parts), strict=True)
        return torch.cat([torch.cat(inputs, 1) for inputs in each], 1)

    @override
    def unseen(self, gone: Tensor) -> Self:
        each = zip(self.parts, gone.expand_as(self.mean).split(self.widths, 1), strict=True)
        return type(self)(tuple(part.unseen(own) for part, own in each))

    @override
    def tilt(self) -> Tilt:
        found = [part.tilt() for part in self.parts]
        return Tilt(
            torch.stack([each.constant for each in found]).sum(0),
            torch.cat([each.linear for each in found], 1),
            torch.cat([each.curvature.expand_as(each.linear) for each in found], 1),
        )

    @override
    def tilted(self, tilt: Tilt) -> tuple[Self, Tensor, Tensor]:
        curvature = tilt.curvature.expand_as(tilt.linear).split(self.widths, 1)
        zero = torch.zeros_like(tilt.constant)
        each = zip(self.parts, tilt.linear.split(self.widths, 1), curvature, strict=True)
        found = [part.tilted(Tilt(zero, linear, bend)) for part, linear, bend in each]
        product, log_z = self._products([(part, z) for part, z, _ in found])
        return product, tilt.constant + log_z, torch.cat([missing for _, _, missing in found], 1)

    def _products(self, found: Sequence[tuple[Distribution, Tensor]]) -> tuple[Self, Tensor]:
        parts, log_z = zip(*found, strict=True)
        return type(self)(parts), torch.stack(log_z).sum(0)
