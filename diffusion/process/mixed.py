"""A process for rows of several kinds of elements, with one clock.

    q(x_t | x_{t-1}) = product over parts of their own q, all with the same beta_t

Reals diffuse by the Gaussian process and categories by the categorical one; alpha_bar_t is the
signal that is left of both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, Self, final

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor
from typing_extensions import override

from diffusion.distributions import Distribution, Tilt
from diffusion.mixed import Mixed
from diffusion.noise import Noise
from diffusion.observation import Observation
from diffusion.operators import LinearOperator, Mask
from diffusion.process.base import (
    MEASURED,
    Config,
    Estimate,
    Output,
    Prediction,
    PredictionKind,
    Process,
    VarianceKind,
)
from diffusion.process.categorical import CategoricalProcess
from diffusion.process.gaussian import GaussianPrediction, GaussianProcess
from diffusion.profile import Profile
from diffusion.schedule import LogSnrSchedule, Schedule
from diffusion.space import Space
from diffusion.table import TableSpace


class Reals(BaseModel):
    """`width` real elements."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["reals"] = "reals"
    width: PositiveInt

    def build(self, beta: Tensor) -> Process:
        """Build the part's process."""
        return GaussianProcess(beta)


class Categories(BaseModel):
    """Category columns, with the probabilities that each decays to."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: Literal["categories"] = "categories"
    base: tuple[tuple[float, ...], ...] = Field(min_length=1)

    @property
    def width(self) -> int:
        """The elements of the columns' one-hot blocks."""
        return sum(map(len, self.base))

    def build(self, beta: Tensor) -> Process:
        """Build the part's process."""
        return CategoricalProcess(beta, self.base)


Part = Annotated[Reals | Categories, Field(discriminator="kind")]


class MixedConfig(Config):
    """A process of T steps for rows of several parts, in the order of their elements."""

    kind: Literal["mixed"] = "mixed"
    schedule: Schedule = LogSnrSchedule()
    parts: tuple[Part, ...] = Field(min_length=1)

    @classmethod
    def of_table(
        cls, space: TableSpace, T: int, schedule: Schedule, base: Sequence[Sequence[float]]
    ) -> Self:
        """Return the process of a table's rows.

        Args:
            space: the table.
            T: the number of steps.
            schedule: of the signal.
            base: pi of each category column.
        """
        width, columns = len(space.numbers), tuple(map(tuple, base))
        reals: tuple[Part, ...] = (Reals(width=width),) if width else ()
        categories: tuple[Part, ...] = (Categories(base=columns),) if columns else ()
        return cls(T=T, schedule=schedule, parts=reals + categories)

    @override
    def build(self) -> "MixedProcess":
        return MixedProcess(self.schedule.beta(self.T), self.parts)


@final
class MixedProcess(Process):
    """Parts that diffuse side by side.

    Args:
        beta: float64 [T + 1], of every part.
        parts: their kinds.
    """

    continuous = False
    by_particles = False

    def __init__(self, beta: Tensor, parts: Sequence[Reals | Categories]) -> None:
        super().__init__(beta)
        self.widths = [part.width for part in parts]
        # Not a ModuleList: an artefact has one table of beta, not one for each part.
        self.parts = tuple(part.build(beta) for part in parts)

    @override
    def refresh(self) -> None:
        super().refresh()
        for part in self.parts:
            part.beta.copy_(self.beta)
            part.refresh()

    @override
    def take(self, beta: Tensor) -> None:
        super().take(beta)
        for part in self.parts:
            part.take(beta)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for part in self.parts:
            part._apply(fn, recurse)
        return self

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Split a row's elements by part."""
        return torch.split(x, self.widths, 1)

    @override
    def prior(self, event: Sequence[int], rows: int) -> Mixed:
        each = zip(self.parts, self.widths, strict=True)
        return Mixed(tuple(part.prior((width,), rows) for part, width in each))

    @override
    def nothing_seen(self, event: Sequence[int], rows: int) -> Observation:
        each = zip(self.parts, self.widths, strict=True)
        found = [part.nothing_seen((width,), rows).factor for part, width in each]
        return Observation(Mixed(tuple(found)))

    @override
    def observe(
        self, space: Space, operator: LinearOperator, y: Tensor, known: Tensor, noise: Tensor
    ) -> tuple[Observation, Tensor]:
        """As `Process.observe`: cells y [N, J] of a table, without noise."""
        if not isinstance(space, TableSpace):
            raise ValueError(f"rows of several kinds are of a table, came a {space.kind!r}")
        if not isinstance(operator, Mask) or bool((noise > 0).any()):
            raise ValueError(
                "a table's cells are observed one by one and exactly: leave out `operator` and "
                f"`{space.noise_name}`"
            )
        z, seen = space.to_model(torch.where(known, y.double(), torch.nan)), space.spread(known)
        return self.saw(z, seen, torch.zeros_like(z)), space.log_jacobian_of(z, seen)

    @override
    def saw(self, y: Tensor, known: Tensor, noise: Tensor) -> Observation:
        each = zip(self.parts, *map(self.split, (y, known, noise)), strict=True)
        return Observation(Mixed(tuple(part.saw(*own).factor for part, *own in each)))

    @override
    def together(self, chosen: Tensor) -> Tensor:
        each = zip(self.parts, self.split(chosen), strict=True)
        return torch.cat([part.together(own) for part, own in each], 1)

    @override
    def noisy(self, x_0: Tensor, level: Tensor, u: Tensor) -> Tensor:
        each = zip(self.parts, *map(self.split, (x_0, level.expand_as(x_0), u)), strict=True)
        return torch.cat([part.noisy(*own) for part, *own in each], 1)

    @property
    @override
    def noise_levels(self) -> tuple[float, float]:
        """What all parts have in common."""
        low, high = zip(*(part.noise_levels for part in self.parts), strict=True)
        return max(low), min(high)

    @override
    def output(
        self,
        prediction: PredictionKind,
        variance: VarianceKind | None,
        profile: Profile | None = None,
    ) -> "MixedOutput":
        return MixedOutput(prediction, variance, profile, process=self)

    @property
    @override
    def most_noise(self) -> float:
        return 0.0

    @override
    def matched_step(self, noise: float) -> tuple[int, float, float]:
        raise ValueError("a matched start is for elements of one kind: use 'auto' or 'twisted'")

    @property
    @override
    def power(self) -> float:
        total = sum(part.power * width for part, width in zip(self.parts, self.widths, strict=True))
        return total / sum(self.widths)

    @override
    def step_noise(self, noise: Noise, event: Sequence[int]) -> Tensor:
        return noise.mixed(self.prior(event, 1).uniform)

    @override
    def likelihood(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tilt:
        found = [
            part.likelihood(own, t, s)
            for part, own in zip(self.parts, self.split(x_t), strict=True)
        ]
        return Tilt(
            torch.stack([each.constant for each in found]).sum(0),
            torch.cat([each.linear for each in found], 1),
            torch.cat([each.curvature.expand_as(each.linear) for each in found], 1),
        )

    @override
    def guide(self, slope: Tensor, var: Tensor, t: Tensor, s: Tensor) -> Tensor:
        each = zip(self.parts, self.split(slope), self.split(var.expand_as(slope)), strict=True)
        return torch.cat([part.guide(own, spread, t, s) for part, own, spread in each], 1)

    @override
    def marginal(self, x_0: Tensor, t: Tensor) -> Mixed:
        each = zip(self.parts, self.split(x_0), strict=True)
        return Mixed(tuple(part.marginal(own, t) for part, own in each))

    @override
    def forward_kernel(self, x_s: Tensor, t: Tensor, s: Tensor | None = None) -> Mixed:
        each = zip(self.parts, self.split(x_s), strict=True)
        return Mixed(tuple(part.forward_kernel(own, t, s) for part, own in each))

    @override
    def bridge(self, x_a: Tensor, x_t: Tensor, t: Tensor, s: Tensor, a: Tensor) -> Mixed:
        each = zip(self.parts, self.split(x_a), self.split(x_t), strict=True)
        return Mixed(tuple(part.bridge(first, last, t, s, a) for part, first, last in each))


@final
@dataclass(frozen=True)
class MixedPrediction(Prediction):
    """A prediction of every part.

    Attributes:
        parts: the parts' predictions.
    """

    process: MixedProcess
    x_t: Tensor
    t: Tensor
    parts: tuple[Prediction, ...]
    fixed: Tensor | None = None

    @property
    def x_0(self) -> Tensor:  # type: ignore[override]
        """The estimates of x_0; of categories the probabilities, [B, D]."""
        return torch.cat([part.x_0 for part in self.parts], 1)

    @override
    def rows(self, index: slice | Tensor) -> Self:
        parts = tuple(part.rows(index) for part in self.parts)
        fixed = None if self.fixed is None else self.fixed[index]
        return replace(self, x_t=self.x_t[index], t=self.t[index], parts=parts, fixed=fixed)

    @override
    def pinned(self, values: Tensor, fixed: Tensor) -> Self:
        each = zip(self.parts, *map(self.process.split, (values, fixed)), strict=True)
        return replace(self, parts=tuple(part.pinned(*own) for part, *own in each), fixed=fixed)

    @override
    def kernel(self, s: Tensor) -> Mixed:
        return Mixed(tuple(part.kernel(s) for part in self.parts))

    @override
    def draw(
        self,
        x_t: Tensor,
        columns: Sequence[Tensor],
        previous: Tensor,
        own: Tensor | bool,
        s: Tensor,
        noise: Noise,
        observation: Observation | None,
    ) -> Tensor:
        kernel: Distribution = self.kernel(s)
        if observation is not None:
            kernel, _ = kernel.observe(observation.factor)
        return kernel.sample(noise)

    @override
    def given(
        self, observation: Observation, s: Tensor, estimate: Estimate
    ) -> tuple[Mixed, Tensor]:
        factor = observation.factor
        assert isinstance(factor, Mixed)  # of the same process
        found = [
            part.given(Observation(own), s, estimate)
            for part, own in zip(self.parts, factor.parts, strict=True)
        ]
        kernels, log_r = zip(*found, strict=True)
        return Mixed(kernels), torch.stack(log_r).sum(0)

    @override
    def carried(self, previous: Tensor) -> Tensor:
        return torch.add(self.x_0, previous, alpha=0.0)

    @override
    def error(self, x_0: Tensor) -> Tensor:
        """Return the parts' errors, weighted by their elements, [B]."""
        each = zip(self.parts, self.process.split(x_0), self.process.widths, strict=True)
        total = torch.stack([part.error(own) * width for part, own, width in each]).sum(0)
        return total / x_0.shape[1]

    @override
    def clipped(self, low: Tensor | None = None, high: Tensor | None = None) -> Self:
        return replace(self, parts=tuple(part.clipped() for part in self.parts))

    @override
    def settled(self, space: Space) -> Self:
        """Weigh the values of each lattice by the prediction's Normal."""
        first = self.parts[0]
        if not (isinstance(first, GaussianPrediction) and first.variance == "moment"):
            return self
        if not isinstance(space, TableSpace) or space.lattice is None:
            return self
        return replace(self, parts=(first.on_lattice(space.settle), *self.parts[1:]))

    @override
    def at(self, x_t: Tensor) -> Self:
        each = zip(self.parts, self.process.split(x_t), strict=True)
        return replace(self, x_t=x_t, parts=tuple(part.at(own) for part, own in each))


@final
@dataclass(frozen=True)
class MixedOutput(Output):
    """Reads the network's output part by part: `prediction` of reals, logits of categories.

    With a variance that the network gives, its second output is the reals'; categories leave theirs
    unread.
    """

    process: MixedProcess = field(kw_only=True)

    @property
    def outputs(self) -> list[Output]:
        """The parts' readers."""
        found: list[Output] = []
        for part in self.process.parts:
            reals = part.continuous
            kinds = (self.prediction, self.variance) if reals else ("x_0", None)
            found.append(part.output(*kinds))
        return found

    @property
    @override
    def count(self) -> int:
        return max(output.count for output in self.outputs)

    @override
    def check(self, space: Space) -> None:
        if self.variance in MEASURED:
            raise ValueError("a mixed row has no single error of x_0hat: use 'lower' or 'moment'")

    @override
    def read(
        self,
        output: Tensor,
        x_t: Tensor,
        t: Tensor,
        of_x_0: Tensor | Sequence[Tensor] | None = None,
    ) -> MixedPrediction:
        """Read each part's elements of every output."""
        wholes = output.chunk(self.count, 1)
        each = zip(
            self.outputs,
            self.process.split(x_t),
            zip(*(self.process.split(whole) for whole in wholes), strict=True),
            strict=True,
        )
        parts = [one.read(torch.cat(own[: one.count], 1), x, t) for one, x, own in each]
        return MixedPrediction(self.process, x_t, t, tuple(parts))

    @property
    @override
    def own(self) -> bool:
        return True

    @override
    def table(self, t: Tensor, s: Tensor) -> Tensor:
        """Return zeros: there is no table."""
        return torch.zeros(len(t), 6, dtype=torch.float64)
