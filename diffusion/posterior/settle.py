"""What a method comes to here: which one `auto` is, its systems' course, its chains' start."""

import math
from collections.abc import Sequence

from torch import Tensor

from diffusion.distributions import Bernoulli, Normal
from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from diffusion.operators import Mask
from diffusion.plan import DDIM, Ancestral, DPMSolver
from diffusion.posterior.factors import Expert, Factor
from diffusion.posterior.matched import MatchedStart, check_start, matched_start
from diffusion.posterior.methods import Auto, Matched, Method, Product, Resample, Settled, Twisted
from diffusion.posterior.product import Constant
from diffusion.posterior.repaint import Repaint, check_repaint
from diffusion.posterior.smc import Filter
from diffusion.posterior.systems import Course
from diffusion.posterior.tilt import TIED
from diffusion.process import BinomialProcess


def settle(
    model: DiffusionModel,
    observation: Observation,
    method: Method,
    factors: Sequence[Factor] = (),
) -> Settled:
    """What `auto` stands for here; any other method is itself.

    Raises:
        ValueError: factors that do not fit, or that the method does not know; a product of models
            beside what ties elements together.
    """
    for factor in factors:
        factor.check(model, len(observation))
    if isinstance(method, Auto):
        noise = None if factors else _noise(model, observation)
        # Where no step has that noise the plain chain from the nearest is another posterior.
        plain = noise is not None and matched_start(model, _values(observation), noise).exact
        method = Matched() if plain else method.twisted
    if factors and not isinstance(method, Twisted):
        raise ValueError(
            f"method '{method.name}' knows what was seen and no other factor: use 'twisted' for "
            "labels and products of models"
        )
    product = any(isinstance(factor, Expert) for factor in factors)
    if product and isinstance(method, Twisted) and method.twist.ties(observation):
        raise ValueError(TIED)
    return method


def course_of(
    model: DiffusionModel,
    observation: Observation,
    method: Settled,
    samples: int,
    sampler: Ancestral | DDIM | DPMSolver,
) -> Course | None:
    """What systems of particles do for a method; None where plain chains do.

    Args:
        model: the model.
        observation: what was seen.
        method: how; never `auto`, which `settle` settles.
        samples: of each datum.
        sampler: the steps.

    Raises:
        ValueError: a sampler or an observation that the method cannot have, or more samples of a
            joint system than it has particles.
    """
    if isinstance(method, Twisted):
        plan = _ancestral(sampler, method).plan(model)
        draws = samples // method.each(samples)
        return Filter(plan, method.particles, draws, method.twist)
    if isinstance(method, Resample):
        check_repaint(observation)
        return Repaint(_ancestral(sampler, method).plan(model), method.jump, method.repeats)
    if isinstance(method, Product) and not isinstance(observation.operator, Mask):
        return Constant(sampler.plan(model))
    return None


def start_of(model: DiffusionModel, observation: Observation) -> MatchedStart:
    """Where the plain chains begin that are method `matched`.

    Raises:
        ValueError: not everything was seen with the same independent noise, or with more or less
            of it than any step has.
    """
    noise = _noise(model, observation)
    if noise is None:
        raise ValueError(
            "a matched start needs the same independent noise on every element (of bits, base "
            "rate 1/2): use 'twisted'"
        )
    start = matched_start(model, _values(observation), noise)
    check_start(start, model)
    return start


def biased(method: Settled) -> bool:
    """Whether a method misses the posterior even of a perfect model with all its steps."""
    return isinstance(method, Product | Resample) or (
        isinstance(method, Twisted) and method.particles == 1
    )


def _ancestral(sampler: Ancestral | DDIM | DPMSolver, method: Settled) -> Ancestral:
    """The sampler, if it draws from the model's own kernel."""
    if not isinstance(sampler, Ancestral):
        raise ValueError(
            f"method '{method.name}' follows the model's own kernel p(x_s | x_t), "
            f"which sampler '{sampler.name}' replaces: use 'ancestral', with fewer steps if need be"
        )
    return sampler


def _values(observation: Observation) -> Tensor:
    """y where all of it was seen through noise: reals, or bits."""
    factor = observation.factor
    if isinstance(factor, Normal):
        return factor.mean
    assert isinstance(factor, Bernoulli)  # there are two families
    return (factor.logits > 0).to(factor.logits.dtype)


def _noise(model: DiffusionModel, observation: Observation) -> float | None:
    """The one noise of all elements, as `matched_start` wants it; None where there is none."""
    factor = observation.factor
    if not isinstance(observation.operator, Mask) or not bool(observation.known.all()):
        return None
    if isinstance(factor, Normal):
        noise = factor.var.sqrt()
    else:
        assert isinstance(factor, Bernoulli)
        if not isinstance(model.process, BinomialProcess) or model.process.base_rate != 0.5:
            return None
        noise = (-factor.logits.double().abs()).sigmoid()
    first = float(noise.flatten()[0])
    most = math.inf if isinstance(factor, Normal) else 0.5  # of flips as good as that no step is
    same = bool(((noise - first).abs() <= 1e-5 * first).all())  # to rounding, in other units
    return first if 0 < first < most and same else None
