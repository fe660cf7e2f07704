"""The matched start: a chain that denoises begins at the step whose noise is the observation's.

    (1 - alpha_bar_t) / alpha_bar_t = sigma^2,    x_t = sqrt(alpha_bar_t) y

Where everything was seen with independent noise no guidance is needed: sqrt(alpha_bar_t) y is a
draw from q(x_t | x_0) as it stands, so the plain chain from there is the posterior, exact up to the
model and the steps.

A step's noise is not quite sigma. Of a normal x_0 a noise wrong by a share d makes the posterior's
standard deviation wrong by d at most, and its mean by z d standard deviations at most, z that of y
in its own: so within `CLOSE` it is as good as exact. Elsewhere, between two steps of a coarse
schedule, below its first or above its last, it is not, and there are particles.
"""

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from diffusion.model import DiffusionModel

#: The share by which a step's noise may differ from what was asked for `auto` to take it.
CLOSE = 0.02


@final
@dataclass(frozen=True)
class MatchedStart:
    """Where a chain that denoises begins.

    Attributes:
        t: the step, 1..T; `plan(..., start=t)` goes on from there.
        x_t: [N, *event], sqrt(alpha_bar_t) y; for bits y.
        noise: the noise that step stands for: a standard deviation in model units, or a flip
            probability. It differs from what was asked by the grid's spacing.
        asked: what was asked.
    """

    t: int
    x_t: Tensor
    noise: float
    asked: float

    @property
    def off(self) -> float:
        """The share by which the noise differs from what was asked."""
        return abs(self.noise / self.asked - 1)

    @property
    def exact(self) -> bool:
        """Whether that is close enough."""
        return self.off <= CLOSE

    @property
    def warning(self) -> str | None:
        """What is wrong where it is not, in words."""
        if self.exact:
            return None
        return (
            f"the step that fits best has {self.noise / self.asked:.3g} times the noise asked "
            "for, and the answer is that of its noise: use 'auto' or 'twisted'"
        )


def matched_start(model: DiffusionModel, y: Tensor, noise: float) -> MatchedStart:
    """The step whose noise equals an observation's, y = x_0 + noise n (or bits flipped).

    `Process.matched_step` says which.

    Args:
        model: the model.
        y: [N, *event], model units.
        noise: a standard deviation in model units, or a flip probability below 1/2; above 0.

    Raises:
        ValueError: no noise, flips no rarer than not, or bits with a base rate other than 1/2,
            whose process flips zeros and ones unequally.
    """
    if not 0 < noise < math.inf:
        raise ValueError(f"a matched start needs noise above 0, came {noise:g}")
    t, scale, found = model.process.matched_step(noise)
    return MatchedStart(t, scale * y, found, noise)


def check_start(start: MatchedStart, model: DiffusionModel) -> None:
    """Raise ValueError where the noise is beyond the schedule's ends, where no step is near it."""
    beyond = "more" if start.asked > start.noise else "less"
    last = model.T if float(model.process.alpha_bar[-1]) > 0 else model.T - 1
    if start.exact or start.t != (last if beyond == "more" else 1):
        return
    raise ValueError(
        f"a matched start takes the step whose noise is the observation's, and no step has so "
        f"{'much' if beyond == 'more' else 'little'}: the nearest has "
        f"{start.noise / start.asked:.3g} times the noise asked for: use 'auto' or 'twisted'"
    )
