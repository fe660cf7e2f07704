"""The importance-weighted bound from several forward trajectories x_1..T given x_0.

    K_S = log (1 / S) sum over S trajectories of w,    w = p(x_0..T) / q(x_1..T | x_0),

    log w = log pi(x_T) / q(x_T | x_0) + sum_{t = 2..T} log p(x_{t-1} | x_t) / q(x_{t-1} | x_t, x_0)
            + log p(x_0 | x_1)

(Sohl-Dickstein et al. 2015, Equation 9, with the mean inside the logarithm). E K_1 is the ordinary
bound; E K_S increases with S towards log p(x_0) and never exceeds it (Burda, Grosse and
Salakhutdinov 2016, Theorem 1). Any step of a trajectory is drawn given its ends by bisection,

    x_T ~ q(x_T | x_0),    x_m ~ q(x_m | x_u, x_l),    m = (l + u) // 2,    [l, u] = [0, T] at first

with the noise of x_m numbered by m, so terms can be evaluated in any order. All values are in nats.
Points and densities are float64: a term is a small difference of large numbers, and in float32 its
error reaches thousandths of a nat at the lowest noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from diffusion.likelihood.bound import BoundResult, check_convention
from diffusion.likelihood.bound import evaluate as evaluate_term
from diffusion.likelihood.estimator import Steps
from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise, Stream
from diffusion.process import Prediction, Process
from diffusion.space import Convention

_ROWS = 4096  # of x_T drawn at once


@final
@dataclass(frozen=True)
class Trajectories:
    """The terms of an importance-weighted bound: all T steps of `each` trajectories per example.

    Row i is trajectory i mod `each` of example i // `each`, and its unit u is the step t = u + 1.
    The first S trajectories do not depend on how many follow.

    Args:
        each: trajectories per example, at least 2.
        T: steps of the process.

    Raises:
        ValueError: one trajectory, which gives no error, or more than the noise can number.
    """

    each: int
    T: int

    def __post_init__(self) -> None:
        most = 2**32 // (self.T + 1)
        if not 2 <= self.each <= most:
            raise ValueError(
                f"`trajectories` are from 2 to {most} with T = {self.T}, came {self.each}; leave "
                "them out for the ordinary bound, which is the mean over single ones"
            )

    @property
    def count(self) -> int:
        """Network evaluations per row."""
        return self.T

    @property
    def nbytes(self) -> int:
        """Bytes of host memory: none, since there is no table."""
        return 0

    def at(self, row: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, s = t - 1 and the number of the trajectory's first draw, int64 [B] each."""
        return unit + 1, unit, row % self.each * (self.T + 1)

    def noise(self, seed: int, row: Tensor) -> CounterNoise:
        """Build the noise of the trajectories of rows, int64 [B]."""
        first = row % self.each * (self.T + 1)
        return CounterNoise(torch.full_like(row, seed), row // self.each, first, Stream.TRAJECTORY)

    def steps(self, data: int) -> Steps:
        """Tabulate all terms of N data, weighted so that their sum is the trajectories' average."""
        unit = torch.arange(self.each * self.T)
        t, s, first = self.at(unit // self.T, unit % self.T)
        weight = torch.full((len(unit),), 1 / self.each, dtype=torch.float64)
        t, s, draw = (x.expand(data, -1) for x in (t, s, first + t))
        return Steps(t, s, draw, weight, 0, 1)


def neighbours(
    process: Process, x_0: Tensor, t: Tensor, noise: CounterNoise
) -> tuple[Tensor, Tensor]:
    """Draw x_{t-1} and x_t of one trajectory per row, float64 [B, *event] each.

    Bisection ends at [l, u] = [t - 1, t], so one pass draws both, in about log2 T draws.

    Args:
        process: the forward process.
        x_0: [B, *event], model units.
        t: int64 [B], 1..T.
        noise: from `Trajectories.noise`; its step is the number of the first draw.
    """
    low, high = torch.zeros_like(t), torch.full_like(t, process.T)
    x_low = x_0.double()
    x_high = process.marginal(x_low, high).sample(_draw(noise, high))
    for _ in range((process.T - 1).bit_length()):
        middle = (low + high) // 2  # = low once they are adjacent, which changes nothing
        x = process.bridge(x_low, x_high, high, middle, low).sample(_draw(noise, middle))
        above = t > middle
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        here = above.view(-1, *[1] * (x.ndim - 1))
        x_low, x_high = torch.where(here, x, x_low), torch.where(here, x_high, x)
    return x_low, x_high


def evaluate(
    model: DiffusionModel,
    prediction: Prediction,
    x_0: Tensor,
    before: Tensor,
    x_t: Tensor,
    t: Tensor,
    convention: Convention,
) -> Tensor:
    """Compute terms of log w from an existing prediction, nats float64 [B].

    At t = 1 this is the last step's log-probability. In "paper" the last step is the fixed T_pi(x_0
    | x_1; beta_1), with expectation -H_q(x_1 | x_0) (Equation 14) if the data have pi's second
    moment.

    Args:
        model: the model.
        prediction: `model.predict(x_t, t)`, x_t in the network's precision.
        x_0: [B, *event], model units.
        before: x_{t-1}, float64 [B, *event].
        x_t: from the same trajectory, float64 [B, *event].
        t: int64 [B].
        convention: of the bound.
    """
    x_0, prediction = x_0.double(), prediction.at(x_t)
    last = t == 1
    values = x_t.new_empty(len(t))
    if bool(last.any()):
        part, one, ends = prediction.rows(last), t[last], (x_0[last], x_t[last])
        if convention == "paper":
            values[last] = model.process.forward_kernel(ends[1], one).log_prob(ends[0])
        else:
            values[last] = evaluate_term(model, part, *ends, one, convention)
    if not bool(last.all()):
        rest = ~last
        s, x_s = t[rest] - 1, before[rest]
        exact = model.process.posterior(x_0[rest], x_t[rest], t[rest], s)
        values[rest] = prediction.rows(rest).kernel(s).log_prob(x_s) - exact.log_prob(x_s)
    return values


def weigh(
    model: DiffusionModel,
    x_0: Tensor,
    trajectories: Trajectories,
    seed: int,
    values: Tensor,
    first: int = 0,
) -> BoundResult:
    """Combine the terms of each example's trajectories into its bound.

    The parts of the result are averages over trajectories. The standard error is the jackknife over
    trajectories: unlike the delta method it reveals a bound dominated by a single weight, and it is
    not too small on average (Efron and Stein 1981). It has one degree of freedom fewer than there
    are trajectories. A profile cannot predict it: weights differ by the kernels' errors, not by the
    variance of single terms.

    Args:
        model: the model.
        x_0: [N, *event], model units.
        trajectories: the trajectories of `values`.
        seed: of the noise.
        values: [N * each, T], nats, from `evaluate`.
        first: the number of the first example under the seed.
    """
    prior = torch.empty(len(values), dtype=torch.float64)
    for row in torch.arange(len(values)).split(_ROWS):
        number = row.to(x_0.device) + first * trajectories.each
        noise = trajectories.noise(seed, number)
        prior[row] = _prior_part(model, x_0[noise.row - first].double(), noise).cpu()
    prior, values = prior.view(-1, trajectories.each), values.double()
    parts = values.view(*prior.shape, trajectories.T)
    steps, last = parts[:, :, 1:].sum(2), parts[:, :, 0]
    log_w = prior + steps + last
    bound = log_w.logsumexp(1) - math.log(trajectories.each)
    gain, freedom = bound - log_w.mean(1), torch.full_like(bound, trajectories.each - 1.0)
    averages = prior.mean(1), steps.mean(1), last.mean(1)
    return BoundResult(bound, _jackknife(log_w), *averages, gain, freedom)


@torch.inference_mode()
def trajectory_bound(
    model: DiffusionModel,
    x_0: Tensor,
    *,
    seed: int,
    convention: Convention,
    trajectories: int,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> BoundResult:
    """Estimate the bound on log p(x_0) of N data from several trajectories each.

    Args:
        model: the model.
        x_0: [N, *event], model units.
        seed: of the noise.
        convention: of the bound.
        trajectories: trajectories per example, at least 2; each costs T network evaluations.
        batch: rows per network call.
        progress: called with the number of evaluations just made.
    """
    check_convention(model, convention)
    of = Trajectories(trajectories, model.T)
    values = torch.empty(len(x_0) * of.each * of.T, dtype=torch.float64)
    for start in range(0, len(values), batch):
        place = torch.arange(start, min(start + batch, len(values)), device=x_0.device)
        t, noise = place % of.T + 1, of.noise(seed, place // of.T)
        x = x_0[noise.row]
        before, x_t = neighbours(model.process, x, t, noise)
        prediction = model.predict(x_t.to(x.dtype), t)
        values[place.cpu()] = evaluate(model, prediction, x, before, x_t, t, convention).cpu()
        if progress is not None:
            progress(len(place))
    return weigh(model, x_0, of, seed, values.view(-1, of.T))


def _draw(noise: CounterNoise, t: Tensor) -> CounterNoise:
    """Build the noise of a trajectory's x_t."""
    return CounterNoise(noise.seed, noise.row, noise.step + t, Stream.TRAJECTORY)


def _prior_part(model: DiffusionModel, x_0: Tensor, noise: CounterNoise) -> Tensor:
    """Return log pi(x_T) - log q(x_T | x_0) of each row's trajectory, nats float64 [B]."""
    end = torch.full_like(noise.step, model.T)
    marginal = model.process.marginal(x_0, end)
    x_T = marginal.sample(_draw(noise, end))
    prior = model.process.prior(model.event, len(x_0))
    return prior.log_prob(x_T) - marginal.log_prob(x_T)


def _jackknife(log_w: Tensor) -> Tensor:
    """Compute the jackknife standard error of the log of the mean of w, [N]."""
    n = log_w.shape[1]
    # Sum from both ends: subtracting a dominant weight from the total would cancel.
    none = torch.full_like(log_w[:, :1], -torch.inf)
    left = torch.cat((none, log_w.logcumsumexp(1)[:, :-1]), 1)
    right = torch.cat((log_w.flip(1).logcumsumexp(1).flip(1)[:, 1:], none), 1)
    without = torch.logaddexp(left, right)
    return ((n - 1) * without.var(1, correction=0)).sqrt()
