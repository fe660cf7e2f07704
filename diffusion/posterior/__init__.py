"""Draws from the posterior p(x_0) r(x_0) / Z, by one of several methods, and how far to trust them.

    twisted   particles that follow a twist: the exact posterior as they grow, and Z
    matched   independent noise on everything is that of some step: the plain chain from there
    product   p(x_s | x_t) r(x_s), the 2015 paper's kernel with one r at every step; biased
    repaint   RePaint's jumps; biased

`auto` takes the matched start where it holds and twisted elsewhere. All are exact at best up to the
model and the number of its steps.
"""

from diffusion.observation import Observation
from diffusion.posterior.diagnostics import Diagnostics
from diffusion.posterior.factors import Expert, Factor, Label
from diffusion.posterior.methods import (
    Auto,
    Matched,
    MatchedStart,
    Method,
    PosteriorMethod,
    Product,
    Repaint,
    Twisted,
    matched_start,
)
from diffusion.posterior.sample import Posterior, sample_posterior

__all__ = [
    "Auto",
    "Diagnostics",
    "Expert",
    "Factor",
    "Label",
    "Matched",
    "MatchedStart",
    "Method",
    "Observation",
    "Posterior",
    "PosteriorMethod",
    "Product",
    "Repaint",
    "Twisted",
    "matched_start",
    "sample_posterior",
]
