"""Methods of drawing from a posterior; a method's configuration also carries it out.

    twisted   particles that follow a twist; exact as their number grows, and estimates Z
    learned   a plain chain whose network is told what was seen; the data's posterior
    matched   a plain chain from the step whose noise equals the observation's
    product   p(x_s | x_t) r(x_s) at every step, the 2015 paper's kernel; biased
    repaint   RePaint; biased
    auto      matched or learned where they apply, else twisted

To add a method, write a subclass of `PosteriorMethod` here and add it to `Method`.
"""

import math
from abc import ABC
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self, final, get_args

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.observation import TIED, Observation
from diffusion.operators import Mask
from diffusion.posterior.baselines import ProductKernel, RepaintKernel, check_repaint
from diffusion.posterior.diagnostics import Diagnostics
from diffusion.posterior.factors import Factor
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import SMCKernel, SMCResult
from diffusion.posterior.twist import Covariance, Told, Twist
from diffusion.samplers import Plan, Sampler, share_of

#: The largest relative error of a step's noise that `auto` accepts. For a normal x_0, a relative
#: error d makes the posterior's standard deviation wrong by at most a share d, and its mean by at
#: most z d standard deviations, with z the z-score of y.
CLOSE = 0.02


@final
@dataclass(frozen=True)
class MatchedStart:
    """The start of a denoising chain, at the step whose noise equals the observation's.

        (1 - alpha_bar_t) / alpha_bar_t = sigma^2,    x_t = sqrt(alpha_bar_t) y

    With independent noise on every element, sqrt(alpha_bar_t) y is itself a draw from q(x_t | x_0),
    so a plain chain from there samples the posterior, up to the errors of the model and its steps.
    If the noise falls between the steps of a coarse schedule, or beyond its ends, none has it.

    Attributes:
        t: the step, 1..T; `plan(..., start=t)` goes on from there.
        x_t: [N, *event], sqrt(alpha_bar_t) y; for bits y.
        noise: the step's noise: a standard deviation in model units, or a flip probability.
        asked: the observation's noise.
    """

    t: int
    x_t: Tensor
    noise: float
    asked: float

    @property
    def off(self) -> float:
        """The relative difference of the two noises."""
        return abs(self.noise / self.asked - 1)

    @property
    def exact(self) -> bool:
        """Whether the two noises are close enough."""
        return self.off <= CLOSE

    @property
    def warning(self) -> str | None:
        """The problem in words; None if the start is exact."""
        if self.exact:
            return None
        return (
            f"the step that fits best has {self.noise / self.asked:.3g} times the noise asked "
            "for, and the answer is for that noise: use 'auto' or 'twisted'"
        )


def matched_start(model: DiffusionModel, y: Tensor, noise: float) -> MatchedStart:
    """Find the start for y = x_0 + noise n, or for flipped bits (`Process.matched_step`).

    Args:
        model: the model.
        y: [N, *event], model units.
        noise: a standard deviation in model units, or a flip probability below 1/2; above 0.

    Raises:
        ValueError: no noise, a flip probability of 1/2 or more, or a base rate other than 1/2, with
            which the process flips zeros and ones unequally.
    """
    if not 0 < noise < math.inf:
        raise ValueError(f"a matched start needs noise above 0, came {noise:g}")
    t, scale, found = model.process.matched_step(noise)
    return MatchedStart(t, scale * y, found, noise)


def _check_start(start: MatchedStart, model: DiffusionModel) -> None:
    """Raise ValueError if the noise is beyond the schedule's ends."""
    beyond = "more" if start.asked > start.noise else "less"
    last = model.T if float(model.process.alpha_bar[-1]) > 0 else model.T - 1
    if start.exact or start.t != (last if beyond == "more" else 1):
        return
    raise ValueError(
        f"a matched start takes the step whose noise is the observation's, and no step has so "
        f"{'much' if beyond == 'more' else 'little'}: the nearest has "
        f"{start.noise / start.asked:.3g} times the noise asked for: use 'auto' or 'twisted'"
    )


class PosteriorMethod(BaseModel, ABC):
    """A way to draw from a posterior, with its settings.

    Attributes:
        name: the method's name.
        default_steps: the most steps of a chain if none are requested; None for all T.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    default_steps: ClassVar[int | None] = None
    name: str

    @property
    def biased(self) -> bool:
        """Whether it is biased even with a perfect model and all its steps."""
        return False

    def resolve(
        self, model: DiffusionModel, observation: Observation, factors: Sequence[Factor] = ()
    ) -> "PosteriorMethod":
        """Return the method to use: itself, unless it chooses among others.

        Raises:
            ValueError: the factors do not fit, or the method does not support them.
        """
        check_factors(model, observation, factors)
        if factors:
            raise ValueError(
                f"method '{self.name}' takes an observation and no other factor: use 'twisted' for "
                "labels and products of models"
            )
        return self

    def kernel(
        self,
        model: DiffusionModel,
        observation: Observation,
        samples: int,
        sampler: Sampler,
    ) -> SMCKernel | None:
        """Return the kernel that moves its particle systems; None if plain chains are enough.

        Raises:
            ValueError: the method does not support the sampler or the observation, or a joint
                system has fewer particles than samples.
        """
        del model, observation, samples, sampler
        return None

    def start(self, model: DiffusionModel, observation: Observation) -> MatchedStart | None:
        """Return where its plain chains begin; None for x_T.

        Raises:
            ValueError: the observation has no such start.
        """
        del model, observation
        return None

    def told(self, observation: Observation) -> Observation:
        """Return the observation as its plain chains take it."""
        return observation

    def covariance_size(self, observation: Observation) -> int:
        """Return the largest M for which a particle computes an M x M covariance; 0 for none."""
        del observation
        return 0

    def diagnose(self, result: SMCResult, count: int, T: int) -> tuple[Diagnostics, ...]:
        """Diagnose `count` posteriors, for a model of T steps."""
        del result, T
        return (Diagnostics(),) * count

    def diagnose_chains(
        self, model: DiffusionModel, observation: Observation, steps: int
    ) -> tuple[Diagnostics, ...]:
        """Diagnose posteriors that were drawn by plain chains of so many steps."""
        del model, steps
        return (Diagnostics(),) * len(observation)

    def gather(self, result: SMCResult, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return samples of `count` posteriors, [N, n, *event], and weights, float64 [N, n]."""
        del seed
        return result.weighted(count)

    def _ancestral_plan(self, model: DiffusionModel, sampler: Sampler) -> Plan:
        """Plan the steps of a sampler that draws from the model's own kernel."""
        if sampler.name != "ancestral":
            raise ValueError(
                f"method '{self.name}' follows the model's own kernel p(x_s | x_t), "
                f"which sampler '{sampler.name}' replaces: use 'ancestral', with fewer steps if "
                "need be"
            )
        return sampler.plan(model)


@final
class Product(PosteriorMethod):
    """The 2015 paper's kernel (Section 2.5), r_t = r at every t; one row per sample, no weights."""

    name: Literal["product"] = "product"

    @property
    @override
    def biased(self) -> bool:
        return True

    @override
    def kernel(
        self,
        model: DiffusionModel,
        observation: Observation,
        samples: int,
        sampler: Sampler,
    ) -> SMCKernel | None:
        if isinstance(observation.operator, Mask):
            return None
        return ProductKernel(sampler.plan(model))


@final
class Repaint(PosteriorMethod):
    """RePaint, for comparison: jumps back `jump` steps, makes each stretch `repeats` times; biased.

    Takes about `steps` * `repeats` network evaluations per sample.
    """

    default_steps: ClassVar[int | None] = 100
    name: Literal["repaint"] = "repaint"
    jump: int = Field(10, ge=1, le=1000)
    repeats: int = Field(10, ge=1, le=100)

    @property
    @override
    def biased(self) -> bool:
        return True

    @override
    def kernel(
        self,
        model: DiffusionModel,
        observation: Observation,
        samples: int,
        sampler: Sampler,
    ) -> SMCKernel:
        check_repaint(observation)
        return RepaintKernel(self._ancestral_plan(model, sampler), self.jump, self.repeats)


@final
class Matched(PosteriorMethod):
    """A plain chain from the step whose noise is nearest to the observation's."""

    name: Literal["matched"] = "matched"

    @override
    def start(self, model: DiffusionModel, observation: Observation) -> MatchedStart:
        noise = observation.one_noise(model.process.most_noise)
        if noise is None:
            raise ValueError(
                "a matched start needs the same independent noise on every element (for bits, also "
                "base rate 1/2): use 'twisted'"
            )
        start = matched_start(model, observation.values, noise)
        _check_start(start, model)
        return start

    @classmethod
    def serves(cls, model: DiffusionModel, observation: Observation) -> bool:
        """Whether some step has just the observation's noise, and this one noise on everything."""
        noise = observation.one_noise(model.process.most_noise)
        return noise is not None and matched_start(model, observation.values, noise).exact

    @override
    def diagnose_chains(
        self, model: DiffusionModel, observation: Observation, steps: int
    ) -> tuple[Diagnostics, ...]:
        start = self.start(model, observation)
        of = sorted(  # the nearest level
            model.calibrated_for(observation, "matched"),
            key=lambda each: abs(math.log((each.level or 1.0) / start.asked)),
        )[:1]
        # A measured chain's steps are those of one from x_T, of which this one takes its share.
        asked = [(each, steps - share_of(each.steps, start.t, model.T)) for each in of]
        refuted = [each for each, more in asked if each.refuted and more <= 0]
        found = refuted or [each for each, more in asked if not each.refuted and more >= 0]
        warning = None
        if refuted:
            warning = (
                f"held-out data refute posteriors of so few steps: {refuted[0].fault}; ask for more"
            )
        one = Diagnostics(warning=warning, calibration=str(found[0]) if found else None)
        return (one,) * len(observation)


@final
class Learned(PosteriorMethod):
    """A plain chain of a network that is told what was seen: p(x_s | x_t, y), no particles.

    It samples the posterior of the data that the network was fitted to, as far as the fit goes,
    where the other methods sample the posterior of the model's own p(x_0).
    """

    default_steps: ClassVar[int | None] = 40
    name: Literal["learned"] = "learned"

    @override
    def resolve(
        self, model: DiffusionModel, observation: Observation, factors: Sequence[Factor] = ()
    ) -> PosteriorMethod:
        super().resolve(model, observation, factors)
        if not model.conditional:
            raise ValueError(
                "this model's network cannot be told what was seen: use 'auto' or 'twisted', or "
                "fit it with conditional = true"
            )
        if not isinstance(observation.operator, Mask):
            raise ValueError(
                "the network is told of elements, not of what an operator makes of them: use "
                "'auto' or 'twisted'"
            )
        return self

    @override
    def told(self, observation: Observation) -> Observation:
        return observation.to_network()

    @override
    def diagnose_chains(
        self, model: DiffusionModel, observation: Observation, steps: int
    ) -> tuple[Diagnostics, ...]:
        found, warning = model.calibrated_for(observation), None
        refuted = [each for each in found if each.refuted]
        if refuted:
            warning = f"held-out data refute such posteriors: {refuted[0].fault}; use 'twisted'"
        elif not model.certified_for(observation):
            warning = (
                f"{'too few' if found else 'no'} held-out data confirm such posteriors: measure "
                "them with `python -m training calibrate`, or use 'twisted'"
            )
        elif found and steps < found[0].steps:
            warning = (
                f"held-out data confirm chains of {found[0].steps} steps, these have {steps}: "
                f"ask for {found[0].steps}"
            )
        calibration = str((refuted or found)[0]) if found else None
        one = Diagnostics(warning=warning, calibration=calibration)
        return (one,) * len(observation)


class _Weighted(PosteriorMethod):
    """The settings of weighted particles."""

    particles: int = Field(8, ge=1, description="Particles per system.")
    systems: Literal["independent", "weighted", "joint"] = Field(
        "weighted",
        description="`weighted`: one system per sample; the samples are drawn from the systems by "
        "their evidence, some more than once, unless that leaves fewer than half of them. "
        "`independent`: one sample from each system, with its weight in `weights`. `joint`: one "
        "system for all samples of an observation, which is cheaper, but they share ancestors.",
    )
    covariance: Covariance = Field(
        Twist().covariance,
        description="The covariance of x_0 given x_t: `full` takes products with the network's "
        "Jacobian, `diagonal` one product, `independent` none; `auto` is `full` up to `products` "
        "observed numbers and `independent` beyond.",
    )
    products: int = Field(
        Twist().products,
        ge=1,
        le=64,
        description="The most Jacobian products per step with `full`. If more numbers were "
        "observed, that many steps of conjugate gradients are made.",
    )


@final
class Twisted(_Weighted):
    """Particles that follow a twist; exact as their number grows, and they estimate the evidence.

    A step takes 1 + min(numbers seen, `products`) network evaluations per particle with `full`
    covariance, 2 with `diagonal`, and 1 with `independent` or for binary data; with the `learned`
    proposal always 2.
    """

    default_steps: ClassVar[int | None] = 100
    name: Literal["twisted"] = "twisted"
    proposal: Literal["twist", "learned"] = Field(
        "twist",
        description="What a particle's step is drawn from: the model's own step moved by the "
        "twist, or `learned`, the step of a network that is told what was seen. The weights make "
        "either exact.",
    )

    @property
    def twist(self) -> Twist:
        """The twist r_t and the proposal that its particles follow."""
        kind = Told if self.proposal == "learned" else Twist
        return kind(covariance=self.covariance, products=self.products)

    @property
    @override
    def biased(self) -> bool:
        return self.particles == 1

    @override
    def resolve(
        self, model: DiffusionModel, observation: Observation, factors: Sequence[Factor] = ()
    ) -> Self:
        check_factors(model, observation, factors)
        if self.proposal == "learned":
            Learned().resolve(model, observation)  # which says what cannot be told
        if any(factor.elementwise for factor in factors) and self.twist.ties(observation):
            raise ValueError(TIED)
        return self

    @override
    def kernel(
        self,
        model: DiffusionModel,
        observation: Observation,
        samples: int,
        sampler: Sampler,
    ) -> SMCKernel:
        plan = self._ancestral_plan(model, sampler)
        systems = 1 if self.systems == "joint" else samples
        return ParticleFilter(plan, self.particles, samples // systems, self.twist)

    @override
    def covariance_size(self, observation: Observation) -> int:
        count = observation.count
        exact = self.twist.exact(count)
        return int(count[exact].max()) if bool(exact.any()) else 0

    @override
    def diagnose(self, result: SMCResult, count: int, T: int) -> tuple[Diagnostics, ...]:
        each = len(result.log_evidence) // count
        parts = (slice(i * each, (i + 1) * each) for i in range(count))
        return tuple(Diagnostics.of(result.rows(part), T) for part in parts)

    @override
    def gather(self, result: SMCResult, count: int, seed: int) -> tuple[Tensor, Tensor]:
        if self.systems == "weighted":
            return result.redrawn(count, seed)
        return result.weighted(count)


@final
class Auto(_Weighted):
    """`matched` or `learned` where they apply, else `twisted` with these fields.

    `learned` applies to observations of a family that the model is certified for, and to all of a
    table, whose particles are many.
    """

    name: Literal["auto"] = "auto"

    @property
    def twisted(self) -> Twisted:
        """The method to use where the matched start does not apply."""
        return Twisted(**self.model_dump(exclude={"name"}))

    @override
    def resolve(
        self, model: DiffusionModel, observation: Observation, factors: Sequence[Factor] = ()
    ) -> PosteriorMethod:
        check_factors(model, observation, factors)
        # If no step has that noise, the chain from the nearest one samples another posterior.
        if not factors and Matched.serves(model, observation):
            return Matched()
        told = model.conditional and not model.process.by_particles
        if not factors and (told or model.certified_for(observation)):
            return Learned().resolve(model, observation)
        return self.twisted.resolve(model, observation, factors)


#: Any method's configuration, discriminated by `name`.
Method = Annotated[
    Auto | Learned | Twisted | Matched | Product | Repaint, Field(discriminator="name")
]

#: The methods of `Method`, by name.
METHODS: dict[str, type[PosteriorMethod]] = {
    kind.model_fields["name"].default: kind for kind in get_args(get_args(Method)[0])
}


def check_factors(
    model: DiffusionModel, observation: Observation, factors: Sequence[Factor]
) -> None:
    """Raise ValueError unless each factor can multiply the model's p(x_0)."""
    for factor in factors:
        factor.check(model, len(observation))
