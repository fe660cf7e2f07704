"""Our methods, run with about the same number of network evaluations per sample."""

import math
from collections.abc import Callable

from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from diffusion.posterior import Method, Posterior, Product, Repaint, Twisted, sample_posterior
from diffusion.posterior.twist import Twist
from diffusion.process import BinomialProcess
from diffusion.samplers import Ancestral

DIAGONAL = Twist(covariance="diagonal")

#: A method, and its network evaluations per step and sample given the number of observed values.
METHODS: dict[str, tuple[Method, Callable[[int], int]]] = {
    "product": (Product(), lambda _: 1),
    "repaint": (Repaint(), lambda _: 10),
    "twisted, diagonal, 8 particles": (
        Twisted(**DIAGONAL.model_dump(), systems="independent"),
        lambda _: 16,
    ),
    "twisted, full, 8 particles": (
        Twisted(systems="independent"),
        lambda seen: 8 * (1 + seen),
    ),
    "twisted, full, 8 particles, weighted": (
        Twisted(systems="weighted"),
        lambda seen: 8 * (1 + seen),
    ),
}


def posterior(
    name: str, model: DiffusionModel, seen: Observation, samples: int, calls: int
) -> Posterior:
    """Sample one example's posterior in as many steps as the calls allow."""
    method, cost = METHODS[name]
    bits = isinstance(model.process, BinomialProcess)  # of which a look is one call
    steps = min(model.T, math.ceil(calls / cost(0 if bits else int(seen.known.sum()))))
    return sample_posterior(
        model, seen, samples, seed=0, method=method, sampler=Ancestral(steps=steps)
    )
