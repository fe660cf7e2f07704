"""How often stated intervals hold the bound's own expectation: by simulation, of oracles."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.likelihood.bound import BoundResult, bound, closed_last, draw_terms, prior_part
from diffusion.likelihood.estimator import Choice
from diffusion.likelihood.iwae import trajectory_bound
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatterns, GaussianMixture
from diffusion.noise import counter_noise
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.profile import ProfileConfig
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule
from diffusion.space import Convention, DataSpace
from training.evaluate.profile import profiled

EXAMPLES, REPEATED, DRAWS = 30, 50, 150
KINDS = ("vectors", "levels", "bits")


@dataclass(frozen=True)
class Coverage:
    """Shares of estimates whose intervals hold what they estimate.

    Attributes:
        interval: the stated one.
        normal: 1.96 standard errors to either side.
        error: the root of the mean square of what estimates are off by.
        stated: that of the standard errors.
    """

    interval: float
    normal: float
    error: float
    stated: float


def oracle(kind: str, T: int) -> tuple[DiffusionModel, Tensor]:
    """A model with its profile, and new draws of its data, model units."""
    if kind == "bits":
        patterns = torch.tensor([[0, 0, 1, 0, 1, 1], [1, 0, 1, 1, 0, 1], [1, 1, 0, 0, 1, 0]])
        bits = BitPatterns.from_values(torch.tensor([0.5, 0.3, 0.2]), patterns, 0.5)
        process = BinomialProcess(InverseTimeSchedule().beta(T), 0.5)
        space = DataSpace(kind="bits", shape=(6,))
        model = DiffusionModel(process, bits, space, "x_0", None).eval()
        train, new = (bits.sample(counter_noise(s, torch.arange(400), 0)).double() for s in (1, 2))
    else:
        size = 3
        means = torch.tensor([[0.6, -0.4, 0.1], [-0.5, 0.3, 0.4]]).double()
        covariances = 0.06 * torch.eye(size).double().expand(2, size, size)
        mixture = GaussianMixture.from_values(torch.tensor([0.4, 0.6]), means, covariances)
        keys = {"shift": 127.5, "scale": 127.5, "levels": 256} if kind == "levels" else {}
        space = DataSpace(kind="vector", shape=(size,), **keys)
        gaussian = GaussianProcess(LogSnrSchedule(first=11.0, last=-7.0).beta(T))
        model = DiffusionModel(gaussian, mixture, space, "x_0", "moment").eval()
        train, new = (
            mixture.sample(counter_noise(s, torch.arange(400), 0)).double() for s in (1, 2)
        )
        if kind == "levels":
            train, new = (space.to_model(space.to_data(x)) for x in (train, new))
    config = ProfileConfig(rows=800, points=60, longest=min(T, 60))
    return profiled(model, train, config), new[:EXAMPLES]


def expectation(model: DiffusionModel, x_0: Tensor, convention: Convention) -> Tensor:
    """The bound of each example without noise, nearly: the mean of many draws of every term."""
    last = closed_last(model, x_0, convention)
    total = prior_part(model, x_0, convention) + (0.0 if last is None else last)
    rows = x_0.repeat_interleave(DRAWS, 0)
    steps = Choice().resolve(model, torch.arange(len(rows)), 9, convention)
    values = draw_terms(model, rows, steps, seed=9, convention=convention, batch=2**15)
    return total + (values * steps.weight).sum(1).view(-1, DRAWS).mean(1)


def of_terms(
    model: DiffusionModel, x_0: Tensor, convention: Convention, choice: Choice, truth: Tensor
) -> Coverage:
    """Of the ordinary bound."""
    rows = x_0.repeat_interleave(REPEATED, 0)
    found = bound(model, rows, seed=4, convention=convention, choice=choice, batch=2**15)
    return _coverage(found, truth.repeat_interleave(REPEATED))


def of_trajectories(model: DiffusionModel, x_0: Tensor, each: int, repeated: int) -> Coverage:
    """Of several trajectories' bound, whose expectation is the mean of such bounds."""
    rows, convention = x_0.repeat_interleave(repeated, 0), model.space.default_convention
    found = trajectory_bound(
        model, rows, seed=4, convention=convention, trajectories=each, batch=2**15
    )
    truth = found.bound.view(len(x_0), repeated).mean(1)
    return _coverage(found, truth.repeat_interleave(repeated))


def _coverage(found: BoundResult, truth: Tensor) -> Coverage:
    off, error = found.bound - truth, found.standard_error
    low, high = found.interval.unbind(1)
    inside, normal = (low <= truth) & (truth <= high), off.abs() <= 1.96 * error
    shares = (float(x.double().mean()) for x in (inside, normal))
    return Coverage(*shares, *(float(x.square().mean().sqrt()) for x in (off, error)))
