"""Compute the bound K of the ideal reverse kernel, which no network can beat.

    K = prior - sum_{t >= 2} E KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) + last,

where p is the factorised kernel nearest to q(x_{t-1} | x_t): the moment match for a Gaussian
kernel, the marginal of each bit for a Bernoulli one. Only more steps, another schedule or another
family can reduce the remaining KL.

`best_table` finds the best schedule of T steps on the Swiss roll for such a kernel. With V(l) the
variances of x_0 given x_t at log SNR l, a step from l up to l' costs the ideal diagonal kernel

    E KL = 1/2 E sum_i log(1 + (e^l' - e^l) V_i(l)),

because SNR_s - SNR_t is c_0^2 / v of q(x_s | x_t, x_0). K is therefore a sum over the jumps of a
path through levels of log SNR, and dynamic programming finds the best path on a grid.
Source: Kingma et al. 2021, Equation 14; Watson, Ho, Norouzi and Chan 2021, Algorithm 1.
"""

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffusion.distributions import Bernoulli
from diffusion.noise import Stream, counter_noise
from diffusion.process import BinomialProcess, GaussianProcess
from diffusion.profile import shortest
from diffusion.schedule import from_log_snr
from diffusion.space import Convention
from training.data.swissroll import FIRST, LAST, SwissRoll

_LOG_2PI_E = math.log(2.0 * math.pi) + 1.0
_BITS = (1.0, 0.0)


@dataclass(frozen=True)
class Ideal:
    """The ideal kernel's mean bound K in nats, and the cost of each step.

    Attributes:
        bound: prior - steps.sum() + last, model units.
        standard_error: of the sampled parts; 0 if everything was enumerated.
        prior, last: the parts of the two ends.
        steps: float64 [T - 1], E KL at t = 2..T.
    """

    bound: float
    standard_error: float
    prior: float
    steps: Tensor
    last: float


def swissroll(
    roll: SwissRoll,
    process: GaussianProcess,
    convention: Convention = "paper",
    *,
    full: bool = False,
    rows: int = 1000,
    seed: int = 0,
) -> Ideal:
    """Evaluate the best Gaussian kernel on the Swiss roll.

    With V(x_t) the covariance of x_0 given x_t, and c_0 and v those of q(x_s | x_t, x_0), the
    moment match costs E KL = 1/2 E log det(1 + c_0^2 V / v), with V reduced to its diagonal unless
    `full`. V is computed by quadrature over the roll's parameter, and E over x_t by one draw in
    each of `rows` equal strata of it.

    Args:
        roll: the data.
        process: has the schedule to evaluate.
        convention: "paper" or "density", for the two ends.
        full: use a full covariance instead of a diagonal one.
        rows: strata.
        seed: of the draws.
    """
    if convention == "discretised":
        raise ValueError('the roll has no levels: ask for "paper" or "density"')
    costs = torch.zeros(rows, process.T + 1, dtype=torch.float64)
    for t in range(1 if convention == "density" else 2, process.T + 1):
        at = torch.tensor([t])
        level = float((1 / process.alpha_bar[t] - 1).sqrt())
        covariance = left(roll, level, rows, seed, t)
        if not full:
            covariance = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
        if t == 1:
            costs[:, t] = 0.5 * (torch.logdet(covariance) + 2 * _LOG_2PI_E)
            continue
        of_x_0, _, posterior = process.posterior_coefficients(at, at - 1)
        ratio = (of_x_0.square() / posterior) * covariance
        costs[:, t] = 0.5 * torch.logdet(torch.eye(2, dtype=torch.float64) + ratio)
    signal, noise_1 = float(process.alpha_bar[-1]), float(process.beta[1])
    if convention == "paper":
        prior = math.log(1 - signal)  # H_q(x_T | x_0) - H_p(x_T), two elements
        last = -(math.log(noise_1) + _LOG_2PI_E)
    else:
        # -KL(q(x_T | x_0) || pi) with E|x_0|^2 = 2, which the roll's scale makes exact.
        prior = math.log(1 - signal)
        last = -float(costs[:, 1].mean())
    steps = costs[:, 2:].mean(0)
    # Draws are independent across t and across strata, so neighbouring strata differ by their
    # noise and a little of the trend.
    spread = (costs.diff(dim=0).square().mean(0) / (2 * rows)).sum().sqrt()
    return Ideal(prior - float(steps.sum()) + last, float(spread), prior, steps, last)


def left(roll: SwissRoll, level: float, rows: int, seed: int, place: int) -> Tensor:
    """Compute the covariance of x_0 given y = x_0 + level n, float64 [rows, 2, 2].

    Args:
        roll: the data.
        level: standard deviation of the noise, sqrt(1 / SNR).
        rows: number of equal strata of the roll's parameter, with one y in each.
        seed: of the draws.
        place: different places have independent draws.
    """
    u = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    noise = counter_noise(seed, torch.arange(rows), place, Stream.DATA).normal((2,)).double()
    y = roll.curve(FIRST + (LAST - FIRST) * u) + math.hypot(roll.noise, level) * noise
    return roll.posterior(y, level)[1]


def heartbeat(
    bits: int, period: int, process: BinomialProcess, convention: Convention = "paper"
) -> Ideal:
    """Evaluate the best factorised kernel on the heartbeat exactly, by enumeration.

    Given x_0 of phase 0 the bits of x_t are independent, and q(phase | x_t) depends on x_t only
    through the number of ones at the positions of each phase, so there are few states to enumerate.
    With p_i the marginal q(x_{s,i} = 1 | x_t), E KL = E H(p) - E H(q(x_s | x_t, x_0)).

    Args:
        bits: length of a sequence, a multiple of `period`.
        period: distance between ones.
        process: has the schedule to evaluate.
        convention: "paper" (the last step fixed) or "discretised" (the best last step).
    """
    if bits % period:
        raise ValueError(f"`bits` must be a multiple of the period {period}, not {bits}")
    if convention == "density":
        raise ValueError('bits have no density: ask for "paper" or "discretised"')
    each = bits // period
    # The positions without a one are exchangeable: the order of their counts does not matter.
    states = [
        (first, *rest)
        for first in range(each + 1)
        for rest in itertools.combinations_with_replacement(range(each + 1), period - 1)
    ]
    counts = torch.tensor(states, dtype=torch.float64)
    number_of = torch.tensor([ways(state, each) for state in states], dtype=torch.float64)
    pair = torch.tensor([0.0, 1.0], dtype=torch.float64)  # both values of a bit of x_t

    def spent(t: Tensor) -> Tensor:
        """E KL at each t [n]; at t = 1, where q(x_0 | x_1, x_0) is deterministic, E H(p)."""
        one, zero = (
            process.marginal(torch.full((len(t), 1, 1), x).double(), t).mean for x in _BITS
        )
        of_one = counts * one.log() + (each - counts) * torch.log1p(-one)  # [n, states, period]
        of_zero = counts * zero.log() + (each - counts) * torch.log1p(-zero)
        mass = (number_of.log() + of_one[..., 0] + of_zero[..., 1:].sum(-1)).exp()
        share = (of_one - of_zero).log_softmax(-1)  # log q(phase | x_t)
        logits = share - torch.log1p(-share.exp().clamp(max=1 - 1e-16))
        logits = logits[..., None].expand(*share.shape, 2)  # of x_0 = 1, for x_t = 0 and 1
        last = bool((t == 1).all())
        p = Bernoulli(logits) if last else process.mix(logits, pair.expand_as(logits), t, t - 1)
        number = torch.stack((each - counts, counts), -1)
        entropy = (mass * (number * _entropy(p)).sum((-1, -2))).sum(1)
        if last:
            return entropy
        x_t = pair.expand(len(t), 2)
        for x_0, places, chance in ((1.0, each, one), (0.0, bits - each, zero)):
            known = process.posterior(torch.full_like(x_t, x_0), x_t, t, t - 1)
            weights = torch.cat((1 - chance, chance), 1).squeeze(2)
            entropy = entropy - places * (weights * _entropy(known)).sum(1)
        return entropy

    steps = torch.cat([spent(t) for t in torch.arange(2, process.T + 1).split(64)])
    first = _ends(process, 1, each, bits)
    final = _ends(process, process.T, each, bits)
    base = _entropy(Bernoulli.of(torch.tensor([process.base_rate], dtype=torch.float64)))
    prior_entropy = bits * float(base)
    if convention == "paper":
        prior, last = final - prior_entropy, -first
    else:
        x_0 = torch.zeros(1, bits, dtype=torch.float64)
        x_0[:, ::period] = 1
        marginal = process.marginal(x_0, torch.tensor([process.T]))
        pi = Bernoulli(process.prior((bits,), 1).logits.double())
        prior, last = -float(marginal.kl(pi)), -float(spent(torch.ones(1, dtype=torch.int64)))
    return Ideal(prior - float(steps.sum()) + last, 0.0, prior, steps, last)


def ways(counts: tuple[int, ...], each: int) -> int:
    """Count the x_t with these counts, in any order except for the first count."""
    orders = math.factorial(len(counts) - 1)
    for number in Counter(counts[1:]).values():
        orders //= math.factorial(number)
    return orders * math.prod(math.comb(each, k) for k in counts)


def _ends(process: BinomialProcess, t: int, ones: int, bits: int) -> float:
    """Compute H_q(x_t | x_0) of a sequence with this number of ones, nats."""
    x_0 = (torch.arange(bits) < ones).double()[None]
    return float(process.marginal(x_0, torch.tensor([t])).entropy())


def _entropy(p: Bernoulli) -> Tensor:
    """Compute the entropy of each element, nats."""
    mean = p.mean
    found: Tensor = torch.special.entr(mean) + torch.special.entr(1 - mean)
    return found


LOWEST = -8.0  # log SNR: lower levels carry less than .001 nats about x_0
ABOVE = 4.0  # how far a learned first log SNR may exceed the given one


def best_table(
    roll: SwissRoll,
    T: int,
    first: float,
    *,
    ends: Literal["fixed", "learned"] = "fixed",
    levels: int = 160,
    rows: int = 300,
    seed: int = 0,
) -> Tensor:
    """Find the table beta, float64 [T + 1], with the greatest K in the convention "density".

    With the first level fixed it is also the best in the convention "paper", whose last step
    depends on that level only.

    Args:
        roll: the data.
        T: steps.
        first: log SNR at t = 1.
        ends: whether that level is fixed or learned.
        levels: size of the grid, in equal steps of log SNR; a coarse grid loses a little of K.
        rows: draws at each level, the same at all levels, so that K is smooth in the path.
        seed: of the draws.
    """
    highest = first if ends == "fixed" else first + ABOVE
    log_snr = torch.linspace(highest, LOWEST, levels, dtype=torch.float64)
    snr = log_snr.exp()
    # Node 0 is the data and levels + 1 the prior: T + 1 jumps through T levels.
    cost = torch.full((levels + 2, levels + 2), math.inf, dtype=torch.float64)
    for node, level in enumerate((1 / snr.sqrt()).tolist(), 1):
        variance = left(roll, level, rows, seed, 0).diagonal(dim1=-2, dim2=-1)  # [rows, 2]
        if ends == "learned" or node == 1:
            cost[node, 0] = 0.5 * (2 * math.pi * math.e * variance).log().sum(1).mean()
        gained = snr[: node - 1] - snr[node - 1]
        cost[node, 1:node] = 0.5 * torch.log1p(gained * variance[..., None]).sum(1).mean(0)
    cost[-1, 1:-1] = torch.nn.functional.softplus(log_snr)  # -log(1 - alpha_bar), two elements
    path = shortest(cost, T + 1)[0][T]
    return from_log_snr(log_snr[path[1:-1] - 1])
