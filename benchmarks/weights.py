"""Measure how unequal the weights of particles are on digits, by the two proposals.

    python -m benchmarks.weights [--model models/mnist/model.safetensors] [--digits 2] [--steps 40]

For each case of `benchmarks.digits`, a few systems of each test digit: the ancestors that survive,
the deviation of the log-weights at the end, that of log p(y) between systems, and its mean. "Once"
are paths of the learned proposal that are weighted at the end alone; their log-weights differ by as
much as the network that is told and the model's own chain disagree along a path.
"""

import argparse
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor

from benchmarks import digits
from benchmarks.measure import machine, table
from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.smc import SMCResult
from diffusion.posterior.twist import Told, Twist, evaluate_last_twist
from diffusion.samplers import Ancestral
from training.data import MnistConfig

_TOGETHER = 64  # rows of a network call


@final
class Once(Told):
    """The learned proposal, without weights before the end."""

    trust: ClassVar[float] = 0.0


TWISTS: dict[str, Twist] = {"twist": Twist(), "learned": Told(), "learned, once": Once()}


@torch.no_grad()
def measured(
    model: DiffusionModel, seen: Observation, kernel: ParticleFilter, systems: int
) -> tuple[SMCResult, Tensor]:
    """Run systems of each example; also returns the deviation of their last log-weights, [S]."""
    number = torch.arange(len(seen) * systems)
    state = kernel.begin(model, seen.rows(number // systems), 7, number)
    last = len(kernel) - 1
    for position in range(last):
        state = kernel.step(model, state, position, _TOGETHER)
    x, t = state.x.flatten(0, 1), kernel.plan.t[last:]
    log_r = torch.cat(
        [
            evaluate_last_twist(model, x[rows], t, state.observation.rows(rows)).log_r
            for rows in torch.arange(len(x)).split(_TOGETHER)
        ]
    )
    log_w = state.log_w + state.log_path + log_r.reshape(state.log_w.shape)
    state = kernel.step(model, state, last, _TOGETHER)
    return SMCResult.of(model, kernel, state), log_w.std(1)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/mnist/model.safetensors"))
    parser.add_argument("--only", nargs="*", default=list(TWISTS), choices=list(TWISTS))
    parser.add_argument("--cases", nargs="*", default=list(digits.CASES), choices=digits.CASES)
    for name, default in (("digits", 2), ("systems", 2), ("particles", 8), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    model, _ = load(asked.model)
    model.eval().requires_grad_(False).tabulate()
    x_0 = model.space.to_model(MnistConfig().load().split("test")[: asked.digits])
    plan, rows = Ancestral(steps=asked.steps).plan(model), []
    for case in asked.cases:
        seen, _ = digits.observe(x_0, case, 0)
        for name in asked.only:
            kernel = ParticleFilter(plan, asked.particles, twist=TWISTS[name])
            found, spread = measured(model, seen, kernel, asked.systems)
            log_z = found.log_evidence.reshape(asked.digits, -1)
            apart = log_z.var(1).mean().sqrt()
            numbers = found.ancestors.double().mean(), spread.mean(), apart, log_z.mean()
            cells = [f"{float(number):.1f}" for number in numbers]
            rows.append([case, name, str(int(found.evaluations[0])), *cells])
            print(rows[-1], flush=True)
    heads = ["seen", "proposal", "evaluations", "ancestors", "log-weights", "systems", "log p(y)"]
    print("\n" + table(heads, rows))


if __name__ == "__main__":
    main()
