"""RePaint: what was seen is put in at every step, noised alike, and jumps back up blend it in.

    A x_s <- sqrt(alpha_bar_s) y + sqrt(1 - alpha_bar_s) A n,    then `jump` steps back up, `times`

A heuristic, biased whatever the model; here for comparison. Source: Lugmayr, Danelljan, Romero, Yu,
Timofte and Van Gool 2022, Algorithm 1 and Appendix B.
"""

import itertools

import torch
from torch import Tensor

from diffusion.distributions import Bernoulli, Normal
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.operators import Mask
from diffusion.plan import Plan
from diffusion.process import BinomialProcess, GaussianProcess


def timeline(steps: int, jump: int, times: int) -> list[int]:
    """How many steps have been made, after each move down (one more) or back up (`jump` fewer).

    Each time that a multiple of `jump` steps is left, the last `jump` are made `times` times.
    """
    made, found = 0, [0]
    while made < steps:
        made += 1
        found.append(made)
        if (steps - made) % jump == 0 and made >= jump:
            for _ in range(times - 1):
                found += [made - jump, *range(made - jump + 1, made + 1)]
    return found


@torch.no_grad()
def repaint(
    model: DiffusionModel,
    observation: Observation,
    plan: Plan,
    *,
    seed: int,
    jump: int = 10,
    times: int = 10,
) -> tuple[Tensor, int]:
    """One draw a row, [B, *event], and the network evaluations of each.

    Observations with noise are put in while the chain's own noise is the greater of the two.

    Args:
        model: the model.
        observation: what was seen, [B, *seen].
        plan: an ancestral plan from T down to 0.
        seed: of the noise; a row's is numbered by its place.
        jump: how many steps back.
        times: how often each stretch of `jump` steps is made.

    Raises:
        ValueError: bits that may have flipped.
    """
    put = _of_bits if isinstance(model.process, BinomialProcess) else _of_reals
    row = torch.arange(len(observation), device=model.device)
    levels = torch.cat((plan.t, plan.s[-1:])).to(model.device)
    way = timeline(len(plan), jump, times)
    x = model.process.prior(model.event, len(row)).sample(counter_noise(seed, row, 0))
    evaluations = 0
    for move, (before, after) in enumerate(itertools.pairwise(way), 1):
        noise = counter_noise(seed, row, move)
        start, end = levels[before : before + 1], levels[after : after + 1]
        if after < before:
            x = model.process.forward_kernel(x, end, start).sample(noise)
            continue
        x = model.predict(x, start).kernel(end).sample(noise)
        evaluations += 1
        fresh = counter_noise(seed, row, move, Stream.REPLACEMENT).normal(model.event)
        x = put(model, observation, x, end, fresh)
    return x, evaluations


def _of_reals(
    model: DiffusionModel, observation: Observation, x: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """x_s with A x_s replaced where the chain is noisier than y."""
    process, factor, operator = model.process, observation.factor, observation.operator
    assert isinstance(process, GaussianProcess)
    assert isinstance(factor, Normal)  # reals
    at = float(process.alpha_bar[s])
    ones = torch.ones_like(x[:1])
    gained = (1 - at) * operator.variance(ones)  # the chain's own noise in A x_s
    left = 1 - at * factor.var / gained.clamp_min(1e-30) if at < 1 else 1 - 2 * factor.var.sign()
    wanted = at**0.5 * factor.mean + ((1 - at) * left.clamp_min(0)).sqrt() * operator.forward(noise)
    change = torch.where(left >= 0, wanted - operator.forward(x), 0.0)
    if isinstance(operator, Mask):
        return torch.where(observation.known & (left >= 0), wanted, x)
    inverse: Tensor = torch.linalg.pinv(operator.matrix(model.event, x.device))
    moved: Tensor = (change.double().flatten(1) @ inverse.mT).reshape(x.shape)
    return x + moved.to(x.dtype)


def _of_bits(
    model: DiffusionModel, observation: Observation, x: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """x_s with the known bits drawn from q(x_s | x_0 = y)."""
    factor = observation.factor
    assert isinstance(factor, Bernoulli)
    if bool(torch.isfinite(factor.logits[observation.known]).any()):
        raise ValueError(
            "method 'resample' puts in what was seen as it is, and these bits may have flipped: "
            "use 'twisted'"
        )
    chance = model.process.marginal((factor.logits > 0).to(x.dtype), s)
    assert isinstance(chance, Bernoulli)
    drawn = (torch.special.ndtr(noise) < chance.mean).to(x.dtype)
    return torch.where(observation.known, drawn, x)
