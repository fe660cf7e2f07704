"""The variational bound K on log p(x_0) and its terms (Sohl-Dickstein et al. 2015, Equation 14).

    K = prior + sum_{t = 2..T} -KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) + last

By convention:

- "discretised": prior = -KL(q(x_T | x_0) || pi), last = E log P(x_0 | x_1), the probability of the
  exact 8-bit or binary value (Ho, Jain and Abbeel 2020, Section 3.3);
- "density": the same with the model's own Gaussian last step, a log-density in data units;
- "paper": prior = H_q(x_T | x_0) - H_p(x_T), last = -H_q(x_1 | x_0): the last step is fixed,
  p(x_0 | x_1) = T_pi(x_0 | x_1; beta_1); in model units.

All values are in nats. Each term uses its own draw of x_t, so terms can be evaluated in any order.

With an observation y that the network is told of, the same sums over the elements that y leaves
open are a bound on log p(x_0 | y).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.distributions import Distribution, sum_of
from diffusion.likelihood.estimator import Choice, Steps, term_noise
from diffusion.likelihood.uncertainty import of_draws, of_strata, quantile, summed
from diffusion.model import DiffusionModel
from diffusion.noise import Noise
from diffusion.observation import Observation
from diffusion.process import Prediction
from diffusion.space import Convention, Space


@final
@dataclass(frozen=True)
class BoundResult:
    """The bounds of N data, nats, float64 [N] each; `bound` = `prior` + `steps` + `last` + `gain`.

    `standard_error` is the Monte Carlo error of one example's bound, computed from the spread of
    the last step's draws, successive differences between strata, and a profile
    (`diffusion.likelihood.uncertainty`); `freedom` is its degrees of freedom. `gain` is by how much
    a bound from several trajectories exceeds their average (`iwae.weigh`), else 0.
    """

    bound: Tensor
    standard_error: Tensor
    prior: Tensor
    steps: Tensor
    last: Tensor
    gain: Tensor
    freedom: Tensor

    @property
    def interval(self) -> Tensor:
        """The 95% confidence interval of the expected bound, by Student's t, nats [N, 2]."""
        half = quantile(self.freedom) * self.standard_error
        return torch.stack((self.bound - half, self.bound + half), 1)


def evaluate(
    model: DiffusionModel,
    prediction: Prediction,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    convention: Convention,
    s: Tensor | None = None,
) -> Tensor:
    """Compute terms of the bound from an existing prediction, nats [B].

    A term is -KL(q(x_s | x_t, x_0) || p(x_s | x_t)), or at s = 0 the last step's part.

    Args:
        model: the model.
        prediction: `model.predict(x_t, t)`; elements that it was told exactly add nothing.
        x_0: [B, *event], model units.
        x_t: [B, *event], drawn from q(x_t | x_0).
        t: int64 [B].
        convention: of the bound; "paper" does not use the prediction at s = 0.
        s: int64 [B], where the steps end; None for t - 1.
    """
    s = t - 1 if s is None else s
    last = s == 0
    among = None if prediction.fixed is None else ~prediction.fixed
    if convention == "paper" and bool(last.all()):
        return -model.process.marginal(x_0, t).entropy()
    if convention != "paper" or not bool(last.any()):
        return sum_of(evaluate_each(model, prediction, x_0, x_t, t, convention, s), among)
    values = x_0.new_empty(len(t))
    for rows in (last, ~last):
        part = prediction.rows(rows)
        found = evaluate(model, part, x_0[rows], x_t[rows], t[rows], convention, s[rows])
        values[rows] = found.to(values.dtype)
    return values


def evaluate_each(
    model: DiffusionModel,
    prediction: Prediction,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    convention: Convention,
    s: Tensor | None = None,
) -> Tensor:
    """Compute what each element adds to the terms of `evaluate`, nats [B, *event].

    Of elements that were told exactly it means nothing. Not of the last step by "paper".
    """
    s = t - 1 if s is None else s
    last = s == 0
    if not bool(last.any()):
        return -model.process.posterior(x_0, x_t, t, s).kls(prediction.kernel(s))
    if bool(last.all()):
        return _likelihoods(prediction.kernel(s), model.space, x_0, convention)
    values = torch.empty_like(x_0)
    for rows in (last, ~last):
        part = prediction.rows(rows)
        found = evaluate_each(model, part, x_0[rows], x_t[rows], t[rows], convention, s[rows])
        values[rows] = found.to(values.dtype)
    return values


def evaluate_parts(
    model: DiffusionModel,
    prediction: Prediction,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    convention: Convention,
    s: Tensor | None = None,
) -> Tensor:
    """Compute the terms of `evaluate` by part (`Space.by_part`), nats [B, parts]."""
    if model.space.parts == 1:
        return evaluate(model, prediction, x_0, x_t, t, convention, s)[:, None]
    each = evaluate_each(model, prediction, x_0, x_t, t, convention, s)
    if prediction.fixed is not None:
        each = torch.where(prediction.fixed, 0.0, each)
    return model.space.by_part(each)


def _likelihoods(kernel: Distribution, space: Space, x_0: Tensor, convention: Convention) -> Tensor:
    """Return the log-density of each element in data units or the mass of its cell, [B, *event]."""
    if convention == "discretised":
        return kernel.log_masses(x_0, space.cells(x_0))
    found = kernel.log_probs(x_0)
    found = found + space.log_slopes(x_0).to(found.dtype)
    if space.lattice is None:
        return found
    masses = kernel.log_masses(x_0, space.cells(x_0))
    return torch.where(space.lattice.to(x_0.device), masses.to(found.dtype), found)


def terms(
    model: DiffusionModel,
    x_0: Tensor,
    t: Tensor,
    noise: Noise,
    convention: Convention,
    clip: bool = True,
) -> Tensor:
    """Draw one term of the bound per row, nats [B]; differentiable in the model's parameters.

    Args:
        model: the model.
        x_0: [B, *event], model units.
        t: int64 [B], 1..T.
        noise: for the draw of x_t.
        convention: of the bound.
        clip: as in `DiffusionModel.predict`; False in training.
    """
    x_t = model.process.marginal(x_0, t).sample(noise)
    return evaluate(model, model.predict(x_t, t, clip), x_0, x_t, t, convention)


def prior_part(
    model: DiffusionModel,
    x_0: Tensor,
    convention: Convention,
    observation: Observation | None = None,
) -> Tensor:
    """Return the prior's part of the bound, which needs no network, nats float64 [N]."""
    last = torch.full((len(x_0),), model.T, device=x_0.device)
    marginal = model.process.marginal(x_0.double(), last)
    prior = model.process.prior(model.event, len(x_0))
    if convention == "paper":
        return (marginal.entropy() - prior.entropy()).double()
    return -marginal.kl(prior, _open(observation)).double()


def prior_parts(
    model: DiffusionModel, x_0: Tensor, observation: Observation | None = None
) -> Tensor:
    """Return the prior's part of the bound by column of a table, nats float64 [N, parts]."""
    last = torch.full((len(x_0),), model.T, device=x_0.device)
    marginal = model.process.marginal(x_0.double(), last)
    each = -marginal.kls(model.process.prior(model.event, len(x_0)))
    among = _open(observation)
    return model.space.by_part(each if among is None else torch.where(among, each, 0.0)).double()


def combine_parts(steps: Steps, parts: Tensor, prior: Tensor) -> Tensor:
    """Combine terms by column of a table into the bound's part of each column, nats [N, parts].

    Args:
        steps: the terms.
        parts: [N, n, parts], nats, in the order of `steps`.
        prior: [N, parts], from `prior_parts`.
    """
    weighted = parts[:, steps.last :] * steps.weight[steps.last :, None]
    drawn = parts[:, : steps.last].sum(1) / max(steps.last, 1)
    return prior + drawn + weighted.sum(1)


def null_log_prob(
    model: DiffusionModel,
    x_0: Tensor,
    convention: Convention,
    observation: Observation | None = None,
) -> Tensor:
    """Return L_null, the log-likelihood under pi alone in this convention, nats float64 [N]."""
    x_0, among = x_0.double(), _open(observation)
    prior = model.process.prior(model.event, len(x_0))
    if convention == "paper":
        return prior.log_prob(x_0, among).double()
    return sum_of(_likelihoods(prior, model.space, x_0, convention), among).double()


def _open(observation: Observation | None) -> Tensor | None:
    """Return the elements that are asked for; None for all."""
    return None if observation is None else ~observation.closed


def combine(steps: Steps, values: Tensor, prior: Tensor, closed_last: Tensor | None) -> BoundResult:
    """Combine the values of its terms into the bound of each example.

    Args:
        steps: the terms.
        values: [N, n], nats, in the order of `steps`.
        prior: [N], from `prior_part`.
        closed_last: [N], the last part if it has a closed form ("paper"), else None.
    """
    values = values.double()
    weighted = values[:, steps.last :] * steps.weight[steps.last :]
    total, draws = weighted.sum(1), values[:, : steps.last]
    parts = []
    if weighted.shape[1] > 1 or (weighted.shape[1] and steps.expected is not None):
        parts.append(of_strata(weighted, steps.expected))
    if steps.last > 1:
        parts.append(of_draws(draws, steps.expected))
    zero = torch.zeros_like(prior)
    variance, freedom = summed(*parts) if parts else (zero, zero + 1)
    last = closed_last if closed_last is not None else draws.mean(1)
    return BoundResult(prior + total + last, variance.sqrt(), prior, total, last, zero, freedom)


def closed_last(
    model: DiffusionModel, x_0: Tensor, convention: Convention, end: int = 1
) -> Tensor | None:
    """Return the last part -H_q(x_1 | x_0) in convention "paper", float64 [N]; else None.

    `end` is the t at which the last step begins, 1 unless the chain skips steps.
    """
    if convention != "paper":
        return None
    t = torch.full((len(x_0),), end, device=x_0.device)
    return -model.process.marginal(x_0.double(), t).entropy()


def check_convention(model: DiffusionModel, convention: Convention, told: bool = False) -> None:
    """Raise ValueError if a convention does not fit the data, or a network that is told of them."""
    kind, levels = model.space.kind, model.space.levels
    if convention == "discretised" and levels is None and kind != "bits":
        raise ValueError('real data have no discretised bound: use "density" or "paper"')
    if convention == "density" and kind == "bits":
        raise ValueError('bits have no density: use "discretised" or "paper"')
    if told and convention == "paper":
        raise ValueError(
            'convention "paper" fixes the last step of all elements, so it has no bound of some '
            'given others: use "density" or "discretised"'
        )


@torch.inference_mode()
def bound(
    model: DiffusionModel,
    x_0: Tensor,
    *,
    seed: int,
    convention: Convention,
    terms: int | None = None,
    choice: Choice | None = None,
    observation: Observation | None = None,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> BoundResult:
    """Estimate the bound on log p(x_0) of N data, or on log p(x_0 | y).

    Args:
        model: the model.
        x_0: [N, *event], model units.
        seed: of the noise.
        convention: of the bound.
        terms: network evaluations per example; None for all steps.
        choice: the choice of terms, instead of `terms`.
        observation: y, [N, *event], as the network is told of it (`Observation.to_network`); x_0
            agrees with it where it is exact.
        batch: rows per network call.
        progress: called with the number of evaluations just made.
    """
    check_convention(model, convention)
    rows = torch.arange(len(x_0))
    steps = (choice or Choice(terms=terms)).resolve(model, rows, seed, convention)
    values = draw_terms(
        model,
        x_0,
        steps,
        seed=seed,
        convention=convention,
        observation=observation,
        batch=batch,
        progress=progress,
    )
    prior = prior_part(model, x_0, convention, observation)
    last = closed_last(model, x_0, convention, steps.end)
    return combine(steps, values, prior.cpu(), None if last is None else last.cpu())


def draw_terms(
    model: DiffusionModel,
    x_0: Tensor,
    steps: Steps,
    *,
    seed: int,
    convention: Convention,
    observation: Observation | None = None,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw the terms of the bounds of N data, float64 [N, n] on the CPU, ordered as in `steps`.

    The arguments are those of `draw_parts`, which this sums.
    """
    return draw_parts(
        model,
        x_0,
        steps,
        seed=seed,
        convention=convention,
        observation=observation,
        batch=batch,
        progress=progress,
    ).sum(2)


@torch.inference_mode()
def draw_parts(
    model: DiffusionModel,
    x_0: Tensor,
    steps: Steps,
    *,
    seed: int,
    convention: Convention,
    observation: Observation | None = None,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw the terms of bounds by column of a table, float64 [N, n, parts] on the CPU.

    Args:
        model: the model.
        x_0: [N, *event], model units.
        steps: the terms.
        seed: of the noise.
        convention: of the bound.
        observation: what the network is told, [N, *event].
        batch: rows per network call.
        progress: called with the number of evaluations just made.
    """
    parts = model.space.parts
    values = torch.empty(len(x_0) * steps.count, parts, dtype=torch.float64)
    example = torch.arange(len(x_0)).repeat_interleave(steps.count)
    t, s, draw = steps.t.flatten(), steps.s.flatten(), steps.draw.flatten()
    for start in range(0, len(values), batch):
        part = slice(start, start + batch)
        here, device = example[part], x_0.device
        noise = term_noise(
            torch.full_like(here, seed).to(device), here.to(device), draw[part].to(device)
        )
        x, at = x_0[here.to(device)], t[part].to(device)
        x_t = model.process.marginal(x, at).sample(noise)
        to = s[part].to(device)
        seen = None if observation is None else observation.rows(here.to(device))
        prediction = model.predict(x_t, at, observation=seen)
        found = evaluate_parts(model, prediction, x, x_t, at, convention, to)
        values[part] = found.double().cpu()
        if progress is not None:
            progress(len(here))
    return values.view(len(x_0), steps.count, parts)


def bits(nats: Tensor | float) -> Tensor | float:
    """Convert nats to bits."""
    return nats / math.log(2)
