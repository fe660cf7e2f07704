"""Jobs of both kinds, for any model."""

import torch
from torch import Tensor

from diffusion.likelihood.estimator import choose_steps
from diffusion.likelihood.iwae import Trajectories
from diffusion.model import DiffusionModel
from diffusion.posterior import Observation
from diffusion.samplers import DDIM, Ancestral, DPMSolver
from diffusion.space import Convention
from service.engine import BoundJob, SampleJob
from service.engine.results import JobStats

STATS = JobStats(
    queue_seconds=0.0, compute_seconds=0.0, network_evaluations=1, batch_invariant=False
)


def chains(
    model: DiffusionModel,
    rows: int,
    seed: int = 7,
    *,
    name: str = "g",
    sampler: Ancestral | DDIM | DPMSolver | None = None,
    first: int | None = None,
    start: Tensor | None = None,
    observation: Observation | None = None,
) -> SampleJob:
    plan = (sampler or Ancestral()).plan(model, first)
    return SampleJob(name, rows, seed, plan, start, observation)


def terms(
    model: DiffusionModel,
    x_0: Tensor,
    seed: int = 7,
    *,
    name: str = "g",
    count: int | None = None,
    convention: Convention | None = None,
) -> BoundJob:
    convention = convention or model.space.default_convention
    steps = choose_steps(model.T, torch.arange(len(x_0)), seed, convention, count)
    return BoundJob(name, x_0, seed, steps, convention)


def trajectories(
    model: DiffusionModel,
    x_0: Tensor,
    each: int = 3,
    seed: int = 7,
    *,
    name: str = "g",
    convention: Convention | None = None,
) -> BoundJob:
    convention = convention or model.space.default_convention
    return BoundJob(name, x_0, seed, Trajectories(each, model.T), convention)
