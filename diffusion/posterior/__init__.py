"""Sampling from the posterior p(x_0) r(x_0) / Z by several methods, with diagnostics.

    learned   a plain chain of a network that is told what was seen; the data's posterior
    twisted   particles that follow a twist; exact as their number grows, and estimates Z
    matched   a plain chain from the step whose noise equals the observation's independent noise
    product   p(x_s | x_t) r(x_s), the 2015 paper's kernel with the same r at every step; biased
    repaint   RePaint's jumps; biased

`auto` uses matched or learned where they apply and twisted elsewhere. No method is more exact than
the model and its number of steps.
"""

from diffusion.observation import Observation
from diffusion.posterior.diagnostics import Diagnostics
from diffusion.posterior.factors import Expert, Factor, Label
from diffusion.posterior.methods import (
    Auto,
    Learned,
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
    "Learned",
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
