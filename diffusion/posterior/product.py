"""The 2015 paper's product, as a course: r_t = r for every t, one particle a system, no weights.

    x_s ~ p(x_s | x_t) r(x_s) / Z~_t(x_t)

Biased wherever r is not E[r(x_0) | x_t]. Where each element was seen for itself a chain does the
same (`diffusion.sampling`); this goes through any linear operator. Source: Sohl-Dickstein et al.
2015, Section 2.5.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.plan import Plan
from diffusion.posterior.systems import Alone, Systems
from diffusion.sampling import begin, step


@final
@dataclass(frozen=True)
class Constant(Alone):
    """Systems of one particle under a constant r.

    Args:
        plan: from T down to 0.
    """

    plan: Plan

    @override
    def __len__(self) -> int:
        return len(self.plan)

    @override
    def begin(
        self, model: DiffusionModel, observation: Observation, seed: int, number: Tensor
    ) -> Systems:
        noise = counter_noise(seed, number, model.T + 1)
        return Systems.begun(
            begin(model, noise, observation, len(number)), observation, seed, number
        )

    @override
    def step(
        self,
        model: DiffusionModel,
        systems: Systems,
        unit: int,
        together: int | None = None,
        piece: int | None = None,
    ) -> Systems:
        x, x_0, seen = systems.x[:, 0], systems.x_0[:, 0], systems.observation
        update = self.plan.at(unit, x.device)
        parts: list[tuple[Tensor, Tensor]] = []
        for place in torch.arange(len(x), device=x.device).split(together or len(x)):
            noise = counter_noise(systems.seed, systems.number[place], update.t.expand(len(place)))
            parts.append(step(model, x[place], x_0[place], update, noise, seen.rows(place)))
        moved, guessed = (torch.cat(column)[:, None] for column in zip(*parts, strict=True))
        return replace(systems, x=moved, x_0=guessed)
