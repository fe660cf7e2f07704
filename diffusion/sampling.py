"""Sampling: x_s from x_t by a plan's table (`diffusion.plan`), for rows of any plans at any steps.

p~(x_s | x_t) proportional to p(x_s | x_t) r(x_s), p the table's kernel or the network's own
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffusion.distributions import Bernoulli, Distribution, Normal
from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise, DrawnNoise, Noise, Stream, counter_noise
from diffusion.observation import Observation
from diffusion.plan import DDIM, Ancestral, DPMSolver, Plan, Update
from diffusion.prediction import GaussianPrediction, Prediction
from diffusion.process import GaussianProcess, blend, per_row

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
    if update.own is False and not isinstance(prediction, GaussianPrediction):
        return _draw_bits(prediction, x_t, update, noise, observation)
    kernel = _kernel(prediction, x_t, previous, update)
    return (kernel if observation is None else observation.multiply(kernel)[0]).sample(noise)


def _kernel(prediction: Prediction, x_t: Tensor, previous: Tensor, update: Update) -> Distribution:
    if update.own is True or not isinstance(prediction, GaussianPrediction):
        return prediction.kernel(update.s)
    a, b, c, v_0, v_1, w = update.columns(x_t)
    mean = torch.addcmul(blend(a, x_t, b, prediction.x_0), c, previous)
    var = prediction.var_of(v_0, v_1, w)
    if update.own is False:
        return Normal(mean, var)
    own, kernel = per_row(update.own, x_t).bool(), prediction.kernel(update.s)
    return Normal(torch.where(own, kernel.mean, mean), torch.where(own, kernel.var, var))


def _draw_bits(
    prediction: Prediction,
    x_t: Tensor,
    update: Update,
    noise: Noise,
    observation: Observation | None,
) -> Tensor:
    """x_s = 1 where u < a + b x_t + (c + d x_t) x_0hat, [B, *event]; by logits what was seen."""
    a, b, c, d, _, _ = update.columns(x_t)
    ones = torch.addcmul(b * x_t + a, d * x_t + c, prediction.x_0)
    if observation is not None:
        seen = observation.factor
        assert isinstance(seen, Bernoulli)  # of bits
        restricted, _ = observation.multiply(prediction.kernel(update.s))
        assert isinstance(restricted, Bernoulli)
        ones = torch.where(seen.logits == 0, ones, restricted.mean)
    return (noise.uniform(x_t.shape[1:]).to(ones) < ones).to(x_t.dtype)


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
    normal = isinstance(model.process, GaussianProcess)
    together = max(1, _NUMBERS // x_t.numel())
    for i, here in enumerate(update.steps(x_t.dtype)):
        if i % together == 0:
            t = update.t[i : i + together]
            noise = CounterNoise(
                seed.repeat(len(t)), row.repeat(len(t)), t.expand(-1, rows).flatten()
            )
            drawn = noise.normal(model.event) if normal else noise.uniform(model.event)
            draws = drawn.unflatten(0, (len(t), rows)).unbind()
        prediction = model.predict(x_t, here.t if times is None else times[i])
        drawn_here = DrawnNoise(draws[i % together])
        x_t = advance(prediction, x_t, previous, here, drawn_here, observation)
        # A NaN probability draws a zero: without a Gaussian's arithmetic it is kept by hand.
        x_0 = prediction.x_0
        previous = x_0 if normal else torch.add(x_0, previous, alpha=0.0)
        if watch is not None:
            watch(i + 1, x_t, previous)
    return x_t, previous


def _check_observation(plan: Plan, observation: Observation | None) -> None:
    """Raise ValueError where a factor would be ignored: a step that is a point cannot follow it."""
    factor = None if observation is None else observation.factor
    if not isinstance(factor, Normal) or plan.own or bool((plan.table[:, 3:5] > 0).any()):
        return
    if bool((torch.isfinite(factor.var) & (factor.var > 0)).any()):
        raise ValueError(
            "steps without noise are points, which an observation with noise does not move: use "
            "'ancestral', or 'ddim' with eta above 0"
        )
