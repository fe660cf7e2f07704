"""Two biased methods for comparison: RePaint, and the 2015 paper's product with a constant r.

    RePaint  A x_s <- sqrt(alpha_bar_s) y + sqrt(1 - alpha_bar_s) A n,  then `jump` steps back up
    product  x_s ~ p(x_s | x_t) r(x_s) / Z~_t(x_t)

RePaint is a heuristic, biased for any model; the product is biased wherever r is not
E[r(x_0) | x_t]. For elements seen one by one, plain chains (`diffusion.samplers`) already make the
product; the kernel here takes any linear operator.

Sources: Lugmayr, Danelljan, Romero, Yu, Timofte and Van Gool 2022, Algorithm 1 and Appendix B;
Sohl-Dickstein et al. 2015, Section 2.5.
"""

import itertools
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.operators import Mask
from diffusion.posterior.smc import Particles, SingleParticle
from diffusion.samplers import Plan, begin, step


def timeline(steps: int, jump: int, times: int) -> list[int]:
    """List the steps made after each move down (one more) or back up (`jump` fewer).

    Whenever a multiple of `jump` steps is left, the last `jump` steps are made `times` times.
    """
    made, found = 0, [0]
    while made < steps:
        made += 1
        found.append(made)
        if (steps - made) % jump == 0 and made >= jump:
            for _ in range(times - 1):
                found += [made - jump, *range(made - jump + 1, made + 1)]
    return found


@final
@dataclass(frozen=True)
class RepaintKernel(SingleParticle):
    """RePaint; a position is a step down, after any jump back up that precedes it.

    Noisy observations replace x_s only while the chain is noisier than they are.

    Args:
        plan: an ancestral plan from T down to 0.
        jump: the number of steps to jump back.
        times: how often to make each stretch of `jump` steps.
    """

    plan: Plan
    jump: int = 10
    times: int = 10

    @override
    def __len__(self) -> int:
        return len(self._moves)

    @override
    def begin(
        self, model: DiffusionModel, observation: Observation, seed: int, number: Tensor
    ) -> Particles:
        check_repaint(observation)
        prior = model.process.prior(model.event, len(number))
        x = prior.sample(counter_noise(seed, number, 0))
        return Particles.begun(x, observation, seed, number)

    @override
    def step(
        self,
        model: DiffusionModel,
        systems: Particles,
        position: int,
        together: int | None = None,
        piece: int | None = None,
    ) -> Particles:
        put = _of_reals if model.process.continuous else _of_bits
        seed, number, seen = systems.seed, systems.number, systems.observation
        levels = torch.cat((self.plan.t, self.plan.s[-1:])).to(systems.x.device)[:, None]
        x, x_0 = systems.x[:, 0], systems.x_0[:, 0]
        for move, before, after in self._moves[position]:
            noise = counter_noise(seed, number, move)
            if after < before:
                way = model.process.forward_kernel(x, levels[after], levels[before])
                x = way.sample(noise)
                continue
            parts = x.split(together or len(x))
            found = [model.predict(part, levels[before]) for part in parts]
            x_0 = torch.cat([part.x_0 for part in found])
            kernels = [part.kernel(levels[after]) for part in found]
            x = type(kernels[0]).joined(kernels).sample(noise)
            fresh = counter_noise(seed, number, move, Stream.REPLACEMENT).normal(model.event)
            x = put(model, seen, x, levels[after], fresh)
        return replace(systems, x=x[:, None], x_0=x_0[:, None])

    @cached_property
    def _moves(self) -> list[list[tuple[int, int, int]]]:
        """The moves of each position, as (number, steps made before, steps made after)."""
        moves: list[list[tuple[int, int, int]]] = [[]]
        way = itertools.pairwise(timeline(len(self.plan), self.jump, self.times))
        for move, (before, after) in enumerate(way, 1):
            moves[-1].append((move, before, after))
            if after > before:
                moves.append([])
        return moves[:-1]


def check_repaint(observation: Observation) -> None:
    """Raise ValueError for bits observed with flips."""
    factor = observation.factor
    if not factor.continuous and factor.noisy:
        raise ValueError("method 'repaint' cannot use bits that may have flipped: use 'twisted'")


def _of_reals(
    model: DiffusionModel, observation: Observation, x: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """Replace A x_s where the chain is noisier than y."""
    process, factor, operator = model.process, observation.factor, observation.operator
    at = float(process.alpha_bar[s])
    ones = torch.ones_like(x[:1])
    gained = (1 - at) * operator.variance(ones)  # the chain's own noise in A x_s
    left = 1 - at * factor.var / gained.clamp_min(1e-30) if at < 1 else 1 - 2 * factor.var.sign()
    wanted = at**0.5 * factor.mean + ((1 - at) * left.clamp_min(0)).sqrt() * operator.forward(noise)
    change = torch.where(left >= 0, wanted - operator.forward(x), 0.0)
    if isinstance(operator, Mask):
        return torch.where(observation.known & (left >= 0), wanted, x)
    inverse = operator.inverse(model.event, x.device)
    moved = (change.double().flatten(1) @ inverse.mT).reshape(x.shape)
    return x + moved.to(x.dtype)


def _of_bits(
    model: DiffusionModel, observation: Observation, x: Tensor, s: Tensor, noise: Tensor
) -> Tensor:
    """Draw the known bits of x_s from q(x_s | x_0 = y)."""
    factor = observation.factor
    chance = model.process.marginal(factor.values.to(x.dtype), s)
    drawn = (torch.special.ndtr(noise) < chance.mean).to(x.dtype)
    return torch.where(observation.known, drawn, x)


@final
@dataclass(frozen=True)
class ProductKernel(SingleParticle):
    """The 2015 paper's kernel with a constant r.

    Args:
        plan: a plan from T down to 0.
    """

    plan: Plan

    @override
    def __len__(self) -> int:
        return len(self.plan)

    @override
    def begin(
        self, model: DiffusionModel, observation: Observation, seed: int, number: Tensor
    ) -> Particles:
        noise = counter_noise(seed, number, model.T + 1)
        return Particles.begun(
            begin(model, noise, observation, len(number)), observation, seed, number
        )

    @override
    def step(
        self,
        model: DiffusionModel,
        systems: Particles,
        position: int,
        together: int | None = None,
        piece: int | None = None,
    ) -> Particles:
        x, x_0, seen = systems.x[:, 0], systems.x_0[:, 0], systems.observation
        update = self.plan.at(position, x.device)
        parts: list[tuple[Tensor, Tensor]] = []
        for place in torch.arange(len(x), device=x.device).split(together or len(x)):
            noise = counter_noise(systems.seed, systems.number[place], update.t.expand(len(place)))
            parts.append(step(model, x[place], x_0[place], update, noise, seen.rows(place)))
        moved, guessed = (torch.cat(column)[:, None] for column in zip(*parts, strict=True))
        return replace(systems, x=moved, x_0=guessed)
