"""Families of observations: what a network is told of in training, and is certified for.

    y = x_0 in some elements,    or    y = x_0 with noise in all elements or some

A family draws observations at random, and says whether a given one is of its kind.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from diffusion.noise import Noise
from diffusion.observation import Observation
from diffusion.operators import Mask
from diffusion.process import Process
from diffusion.space import Space

Pattern = Literal["scattered", "half", "box", "blobs"]
Observe = Callable[[Process, Tensor, Noise], Observation]
_GRID = 4  # side of the coarse random field whose level sets are blobs
_SETTINGS = 8  # uniform numbers of a row beside those of its elements
_GREY = 64.0  # noise of 8-bit images in a case of its own, grey levels
_SLACK = 1e-3  # relative difference of noise levels that counts as none


@dataclass(frozen=True)
class Case:
    """A way to observe.

    Attributes:
        family: of the observations, which may be a part of the family whose case it is.
        observe: as `Family.observe`.
        level: of its noise, where that is always the same: as `Noisy.levels`.
    """

    family: "Family"
    observe: Observe
    level: float | None = None


class Family(BaseModel, ABC):
    """A kind of observation; `kind` is its name."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: str

    @abstractmethod
    def observe(self, process: Process, x_0: Tensor, noise: Noise) -> Observation:
        """Observe each row of x_0 [B, *event], model units, at random."""

    @abstractmethod
    def holds(self, process: Process, observation: Observation) -> bool:
        """Return whether every example's observation is of this kind."""

    @abstractmethod
    def check(self, event: tuple[int, ...]) -> None:
        """Raise ValueError if data of this shape cannot be seen so."""

    def cases(self, process: Process, space: Space) -> dict[str, "Case"]:
        """Return ways to observe that are worth measuring apart, the own one first, by name."""
        del process, space
        return {self.words: Case(self, self.observe)}

    def includes(self, other: "Family") -> bool:
        """Whether another family draws nothing that this one does not."""
        return self == other

    @property
    def parts(self) -> "tuple[Family, ...]":
        """Families that draw all of this one between them, and are answered in different ways."""
        return (self,)

    @property
    def words(self) -> str:
        """What it draws, in words."""
        return self.kind


@final
class Given(Family):
    """Values known exactly in the same elements of a vector each time: the data of a simulator.

    Attributes:
        columns: the elements that are seen, counted from 0; no other is.
    """

    kind: Literal["given"] = "given"
    columns: tuple[int, ...] = Field(min_length=1)

    @override
    def observe(self, process: Process, x_0: Tensor, noise: Noise) -> Observation:
        return process.saw(x_0, self._known(x_0).expand_as(x_0), torch.zeros_like(x_0))

    @override
    def holds(self, process: Process, observation: Observation) -> bool:
        known, factor = observation.known, observation.factor
        return (
            _elements(observation)
            and not factor.noisy
            and known.ndim == 2
            and bool((known == self._known(known)).all())
        )

    @override
    def check(self, event: tuple[int, ...]) -> None:
        size = event[0] if len(event) == 1 else 0
        if len(set(self.columns)) >= size or not set(self.columns) <= set(range(size)):
            raise ValueError(
                f"given columns are some of a vector's elements, not all, counted from 0: came "
                f"{list(self.columns)} for data of shape {list(event)}"
            )

    def named(self, columns: Sequence[str] | None) -> list[str]:
        """Return the names of the elements seen, out of those of all; or their numbers."""
        return [str(at) if columns is None else columns[at] for at in self.columns]

    def _known(self, like: Tensor) -> Tensor:
        """Which elements are seen, bool [1, D], for a tensor [B, D]."""
        known = torch.zeros(1, like.shape[1], dtype=torch.bool, device=like.device)
        known[:, list(self.columns)] = True
        return known


class _Patterned(Family, ABC):
    """Elements that are seen at random.

    Attributes:
        patterns: which elements are seen, each with equal chance: each independently at a random
            rate ("scattered"); for images also one side of a random straight cut ("half"), all but
            a rectangle ("box"), or a level set of a smooth random field ("blobs").
    """

    patterns: tuple[Pattern, ...] = Field(default=("scattered",), min_length=1)

    @property
    @override
    def words(self) -> str:
        return f"{self.kind}: {', '.join(self.patterns)}"

    @override
    def check(self, event: tuple[int, ...]) -> None:
        others = set(self.patterns) - {"scattered"}
        if others and len(event) != 3:
            raise ValueError(
                f"patterns {sorted(others)} are of images, the data have shape {list(event)}: "
                "use 'scattered'"
            )

    @override
    def includes(self, other: Family) -> bool:
        """Whether the other has some of these patterns, and all else alike."""
        if not isinstance(other, _Patterned):
            return False
        some = set(other.patterns) <= set(self.patterns)
        return some and self == other.model_copy(update={"patterns": self.patterns})

    def _known(self, u: Tensor, settings: Tensor) -> Tensor:
        """Choose the elements that are seen, bool [B, *event].

        Args:
            u: uniform, [B, *event].
            settings: uniform, [B, 4].
        """
        index = (settings[:, 0] * len(self.patterns)).long().clamp(max=len(self.patterns) - 1)
        found = [_PATTERNS[name](u, settings[:, 1:]).expand_as(u) for name in self.patterns]
        return torch.stack(found)[index, torch.arange(len(u), device=u.device)]


@final
class Exact(_Patterned):
    """Values known exactly in some elements.

    A half or a box of an image is of these patterns alone; all else that is seen is as scattered,
    and as blobs, as anything.
    """

    kind: Literal["exact"] = "exact"

    @override
    def observe(self, process: Process, x_0: Tensor, noise: Noise) -> Observation:
        u, settings = _uniform(noise, x_0.shape[1:])
        return process.saw(x_0, self._known(u, settings), torch.zeros_like(x_0))

    @override
    def holds(self, process: Process, observation: Observation) -> bool:
        if not _elements(observation) or observation.factor.noisy:
            return False
        known = observation.known
        if known.ndim < 4:
            return True
        half, box = _is_half(known[:, 0]), _is_box(known[:, 0])
        other = ~(half | box)
        classes = {"half": half, "box": box & ~half}
        return bool(torch.stack([classes.get(each, other) for each in self.patterns]).any(0).all())

    @override
    def cases(self, process: Process, space: Space) -> dict[str, Case]:
        found = super().cases(process, space)
        if len(space.shape) < 3:
            return found | {"half of the elements seen": Case(self, _seen(lambda u: u < 0.5))}
        H, W = space.shape[1:]
        left, centre = torch.zeros(2, H, W, dtype=torch.bool).unbind()
        left[:, : W // 2] = True
        centre[H // 4 : H - H // 4, W // 4 : W - W // 4] = True
        named = {
            "scattered": ("10% of pixels seen", _seen(lambda u: u[:, :1] < 0.1)),
            "half": ("left half seen", _seen(lambda u: left.to(u.device))),
            "box": ("centre hidden", _seen(lambda u: ~centre.to(u.device))),
            "blobs": ("blobs seen", Exact(patterns=("blobs",)).observe),
        }
        return found | {
            named[pattern][0]: Case(Exact(patterns=(pattern,)), named[pattern][1])
            for pattern in self.patterns
        }


@final
class Noisy(_Patterned):
    """Values with one level of noise, in all elements or in some.

    Attributes:
        levels: least and most noise, between which its logarithm is uniform: standard deviations
            in model units, or flip probabilities; None for the process's own.
        whole: the share of observations that see every element.
    """

    kind: Literal["noisy"] = "noisy"
    levels: tuple[float, float] | None = None
    whole: float = Field(default=0.5, ge=0, le=1)

    @property
    @override
    def parts(self) -> tuple[Family, ...]:
        if self.whole in (0, 1):
            return (self,)
        return tuple(self.model_copy(update={"whole": share}) for share in (0.0, 1.0))

    @property
    @override
    def words(self) -> str:
        return f"{self.kind}: all elements" if self.whole == 1 else super().words

    @override
    def includes(self, other: Family) -> bool:
        if not isinstance(other, Noisy):
            return False
        patterns = self.patterns if other.whole == 1 else other.patterns
        alike = other.model_copy(update={"whole": self.whole, "patterns": patterns})
        part = 0 < self.whole < 1 and other.whole in (0, 1)
        return (part or self.whole == other.whole) and super().includes(alike)

    @override
    def observe(self, process: Process, x_0: Tensor, noise: Noise) -> Observation:
        both, settings = _uniform(noise, (2, *x_0.shape[1:]))
        u, v = both.unbind(1)
        (least, most), each = self.levels or process.noise_levels, [-1, *[1] * (x_0.ndim - 1)]
        known = self._known(u, settings) | (settings[:, 4] < self.whole).view(each)
        level = (math.log(least) + settings[:, 5] * math.log(most / least)).exp().view(each)
        return process.saw(process.noisy(x_0, level, v), known, level.expand_as(x_0))

    @override
    def holds(self, process: Process, observation: Observation) -> bool:
        if not _elements(observation) or bool(observation.factor.exact.any()):
            return False
        least, most = self.levels or process.noise_levels
        noise, known = observation.factor.noise.double(), observation.known
        low = torch.where(known, noise, torch.inf).flatten(1).amin(1)
        high = torch.where(known, noise, -torch.inf).flatten(1).amax(1)
        inside = (low >= least * (1 - _SLACK)) & (high <= most * (1 + _SLACK))
        if self.whole in (0, 1):
            inside &= known.flatten(1).all(1) == bool(self.whole)
        return bool((inside & (high <= low * (1 + _SLACK))).all())

    @override
    def cases(self, process: Process, space: Space) -> dict[str, Case]:
        """Return its own way to observe; of noise on all, three levels."""
        if self.whole < 1:
            return super().cases(process, space) | {
                name: case
                for part in self.parts[1:]
                for name, case in part.cases(process, space).items()
            }
        least, most = self.levels or process.noise_levels
        scale = float(space.affine[1].flatten()[0])
        found = {}
        for share in (0.25, 0.5, 0.75):
            level = least * (most / least) ** share
            if space.levels == 256 and share == 0.5 and least <= _GREY / scale <= most:
                level = _GREY / scale
            units = f"{level * scale:.3g}" if space.levels else f"{level:.2g} (model units)"
            name = f"{level:.1%} of bits flipped" if space.flips else f"noise of {units} on all"
            found[name] = Case(self, _noise_on_all(level), level)
        return found


AnyFamily = Annotated[Exact | Given | Noisy, Field(discriminator="kind")]


def observe_some(
    families: Sequence[Family],
    share: float,
    process: Process,
    x_0: Tensor,
    noise: Noise,
    gaps: Tensor | None = None,
) -> Observation:
    """Tell the network of a share of the rows of x_0 [B, *event], by one of the families each.

    What is a gap, bool [B, *event], cannot be seen; None for no gaps.
    """
    choice = noise.uniform((1,))[:, 0] / share
    rows = torch.arange(len(x_0), device=x_0.device)
    index = (choice * len(families)).long().clamp(max=len(families) - 1)
    found = Observation.joined([family.observe(process, x_0, noise) for family in families])
    seen = Observation(found.rows(index * len(x_0) + rows).factor, told=choice < 1)
    return seen if gaps is None else seen.without(gaps)


def leave_out(
    process: Process, share: float, x_0: Tensor, noise: Noise, gaps: Tensor | None
) -> Tensor:
    """Take cells of a share of the rows x_0 [B, *event] for gaps, each at a rate of the row.

    Returns these and the gaps that there are, bool [B, *event].
    """
    u, settings = _uniform(noise, x_0.shape[1:])
    chosen, rate = (settings[:, i].view(-1, *[1] * (x_0.ndim - 1)) for i in (0, 1))
    found = process.together(u < rate) & (chosen < share)
    return found if gaps is None else found | gaps


def _uniform(noise: Noise, event: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return uniform numbers, [B, *event], and the settings, [B, 7]."""
    size = math.prod(event)
    found = noise.uniform((_SETTINGS + size,))
    each = found[:, _SETTINGS:].unflatten(1, tuple(event))
    return each, found[:, 1:_SETTINGS]  # the first one has chosen the family


def _seen(choose: Callable[[Tensor], Tensor]) -> Observe:
    """Observe exactly the elements that `choose` picks by uniform numbers [B, *event]."""

    def observe(process: Process, x_0: Tensor, noise: Noise) -> Observation:
        known = choose(noise.uniform(x_0.shape[1:])).expand_as(x_0)
        return process.saw(x_0, known, torch.zeros_like(x_0))

    return observe


def _noise_on_all(level: float) -> Observe:
    """Observe every element with noise of this level."""

    def observe(process: Process, x_0: Tensor, noise: Noise) -> Observation:
        each = torch.full_like(x_0, level)
        y = process.noisy(x_0, each, noise.uniform(x_0.shape[1:]))
        return process.saw(y, torch.ones_like(x_0, dtype=torch.bool), each)

    return observe


def _elements(observation: Observation) -> bool:
    """Whether something is seen of each example, element by element; of images whole pixels."""
    known = observation.known
    if not isinstance(observation.operator, Mask) or not bool(observation.count.all()):
        return False
    return known.ndim < 4 or bool((known == known[:, :1]).all())


def _scattered(u: Tensor, settings: Tensor) -> Tensor:
    """Each element (of an image, each pixel) at a rate whose square root is uniform."""
    pixels = u if u.ndim == 2 else u[:, :1]
    return pixels < settings[:, 0].square().view(-1, *[1] * (u.ndim - 1))


def _half(u: Tensor, settings: Tensor) -> Tensor:
    """One side of a cut along rows or columns, from 1/5 to 4/5 of the image."""
    place, upright, after = settings[:, :3, None, None].unbind(1)
    down, across = _axes(u)
    at = torch.where(upright < 0.5, across, down)
    return ((at < 0.2 + 0.6 * place) ^ (after < 0.5))[:, None]


def _box(u: Tensor, settings: Tensor) -> Tensor:
    """All but a square of 1/4 to 3/4 of the sides, anywhere."""
    size, top, left = settings[:, :3, None, None].unbind(1)
    size = 0.25 + 0.5 * size
    down, across = (
        at - start * (1 - size) for at, start in zip(_axes(u), (top, left), strict=True)
    )
    hidden = (down >= 0) & (down < size) & (across >= 0) & (across < size)
    return ~hidden[:, None]


def _blobs(u: Tensor, settings: Tensor) -> Tensor:
    """Where a smooth field of random numbers is below a random level."""
    H, W = u.shape[2:]
    coarse = u[:, :1, :: -(-H // _GRID), :: -(-W // _GRID)]
    field = F.interpolate(coarse, size=(H, W), mode="bilinear", align_corners=True)
    return field < 0.2 + 0.6 * settings[:, 0].view(-1, 1, 1, 1)


def _is_half(known: Tensor) -> Tensor:
    """Which masks, bool [B, H, W], `_half` can draw, up to a row or column."""
    found = []
    for rows in (known, known.mT):
        along, n = rows[:, 0], rows.shape[2]
        straight = (rows == rows[:, :1]).flatten(1).all(1)
        once = along.diff(dim=1).sum(1) == 1
        count = along.sum(1)
        found.append(straight & once & (count >= n // 5) & (count <= n - n // 5))
    return found[0] | found[1]


def _is_box(known: Tensor) -> Tensor:
    """Which masks, bool [B, H, W], `_box` can draw, up to a row or column; rectangles too."""
    hidden = ~known
    sides = hidden.any(2), hidden.any(1)
    found = (hidden == sides[0][:, :, None] & sides[1][:, None]).flatten(1).all(1)
    for side in sides:
        count, n = side.sum(1), side.shape[1]
        padded = F.pad(side, (1, 1))
        whole = padded.diff(dim=1).sum(1) == 2
        found = found & whole & (count >= n // 4) & (count <= -(-3 * n // 4))
    return found


def _axes(u: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's place down and across, 0 to 1, [1, H, 1] and [1, 1, W]."""
    H, W = u.shape[2:]
    down = (torch.arange(H, device=u.device) + 0.5) / H
    across = (torch.arange(W, device=u.device) + 0.5) / W
    return down[None, :, None], across[None, None]


_PATTERNS = {"scattered": _scattered, "half": _half, "box": _box, "blobs": _blobs}
