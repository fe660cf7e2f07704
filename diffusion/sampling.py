"""Sampling: x_s from x_t by a plan's table (`diffusion.plan`), for rows of any plans at any steps.

p~(x_s | x_t) proportional to p(x_s | x_t) r(x_s), p the table's kernel or the network's own
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise, DrawnNoise, Noise, Stream, counter_noise
from diffusion.observation import Observation
from diffusion.plan import DDIM, Ancestral, DPMSolver, Plan, Update
from diffusion.prediction import Prediction

_NUMBERS = 2**18  # drawn at once: a few MB


def advance(
    prediction: Prediction,
    x_t: Tensor,
    previous: Tensor,
    update: Update,
    noise: Noise,
    observation: Observation | None,
) -> Tensor:
    """x_s of B rows from a network call already made, [B, *event].

    Args:
        prediction: `model.predict(x_t, update.t)`.
        x_t: [B, *event].
        previous: the x_0hat of each row's step before, [B, *event]; not used by a first step.
        update: each row's step.
        noise: of this step.
        observation: what was seen, [B, *event]; None where nothing was, of any row.
    """
    columns = () if update.own is True else update.columns(x_t)
    return prediction.draw(x_t, columns, previous, update.own, update.s, noise, observation)


def begin(
    model: DiffusionModel, noise: Noise, observation: Observation | None, rows: int
) -> Tensor:
    """x_T of new chains, drawn from pi(x_T) r(x_T), [rows, *event]."""
    prior = model.process.prior(model.event, rows)
    return (prior if observation is None else observation.multiply(prior)[0]).sample(noise)


def step(
    model: DiffusionModel,
    x_t: Tensor,
    previous: Tensor,
    update: Update,
    noise: Noise,
    observation: Observation | None = None,
) -> tuple[Tensor, Tensor]:
    """Advance any rows by one step: x_s and x_0hat, [B, *event] each; one network call."""
    prediction = model.predict(x_t, update.t)
    return advance(prediction, x_t, previous, update, noise, observation), prediction.x_0


@torch.inference_mode()
def sample(
    model: DiffusionModel,
    rows: int,
    *,
    seed: int,
    sampler: Ancestral | DDIM | DPMSolver | None = None,
    observation: Observation | None = None,
    start: tuple[int, Tensor] | None = None,
    stop: int = 0,
    progress: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Draw from p(x_0) r(x_0) with one plan for all rows, model units [rows, *event].

    The noise of a step is numbered by its t, and that of x_T by T + 1, so an answer depends on the
    seed and the row alone.

    Args:
        model: the model.
        rows: how many chains.
        seed: of the noise.
        sampler: ancestral at all T steps where it is not given.
        observation: what was seen, [rows, *event]; nothing where it is not given.
        start: (t, x_t [rows, *event]) to go on from, in place of x_T.
        stop: above 0, chains go no further than their first step at t <= stop, and what comes back
            is x_0hat there: the mean of what they might have come to.
        progress: called after each step with the number of steps made and x_0hat.

    Raises:
        ValueError: a sampler that the model or the observation cannot have, or a stop beyond the
            chain.
    """
    device = model.device
    row = torch.arange(rows, device=device)
    plan = (sampler or Ancestral()).plan(model, None if start is None else start[0])
    _check_observation(plan, observation)
    if start is None:
        noise = counter_noise(seed, row, model.T + 1, Stream.CHAIN)
        x = begin(model, noise, observation, rows)
    else:
        x = start[1].to(device)
    seeds, x_0 = torch.full_like(row, seed), torch.zeros_like(x)

    def watch(made: int, _: Tensor, estimate: Tensor) -> None:
        if progress is not None:
            progress(made, estimate)

    update = plan.whole(device, slice(plan.until(stop)))
    end, estimate = burst(model, x, x_0, update, seeds, row, observation, watch)
    return estimate if stop else end


def burst(
    model: DiffusionModel,
    x_t: Tensor,
    previous: Tensor,
    update: Update,
    seed: Tensor,
    row: Tensor,
    observation: Observation | None = None,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Several steps in turn: x_s and x_0hat after the last.

    What does not depend on x_t is worked out for many steps at once: their noise, and the times
    where they are the same for all rows.

    Args:
        model: the model.
        x_t: [B, *event].
        previous: the x_0hat of the step before, [B, *event].
        update: the steps, [k, B].
        seed: of the noise, int64 [B].
        row: of the noise, int64 [B].
        observation: what was seen, [B, *event].
        watch: called after each step with the number of steps made, x_s and x_0hat.
    """
    rows = len(x_t)
    times = model.times(update.t[:, 0]).each() if update.t.shape[1] == 1 else None
    together = max(1, _NUMBERS // x_t.numel())
    for i, here in enumerate(update.steps(x_t.dtype)):
        if i % together == 0:
            t = update.t[i : i + together]
            noise = CounterNoise(
                seed.repeat(len(t)), row.repeat(len(t)), t.expand(-1, rows).flatten()
            )
            drawn = model.process.step_noise(noise, model.event)
            draws = drawn.unflatten(0, (len(t), rows)).unbind()
        prediction = model.predict(x_t, here.t if times is None else times[i])
        drawn_here = DrawnNoise(draws[i % together])
        x_t = advance(prediction, x_t, previous, here, drawn_here, observation)
        previous = prediction.carried(previous)
        if watch is not None:
            watch(i + 1, x_t, previous)
    return x_t, previous


def _check_observation(plan: Plan, observation: Observation | None) -> None:
    """Raise ValueError where a factor would be ignored: a step that is a point cannot follow it."""
    if observation is not None and plan.points and observation.factor.noisy:
        raise ValueError(
            "steps without noise are points, which an observation with noise does not move: use "
            "'ancestral', or 'ddim' with eta above 0"
        )
