"""Compare the engine's rate of bounds, in data per second, with a plain loop over t.

    python -m benchmarks.loglik [--model models/mnist] [--data 1 4 16] [--terms 100] [--device cpu]

The loop follows improved-diffusion's `calc_bpd_loop`: for each t in turn it makes one network call
on all data, which gives one term for each. `--terms` is the number of terms per example.
"""

import argparse
from functools import partial
from pathlib import Path

import torch

from benchmarks.hosted import hosted
from benchmarks.measure import compare, machine, seconds, table
from diffusion.checkpoint import load
from diffusion.likelihood.bound import terms
from diffusion.likelihood.estimator import choose_steps
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from service.engine.engine import Engine
from service.engine.jobs import BoundJob
from service.memory import keep_freed_memory
from service.settings import Settings


def by_engine(model: DiffusionModel, job: BoundJob) -> float:
    """Time one job through the engine, seconds."""
    limits = Settings(max_queue_cost=10**9, max_request_cost=10**9)

    def ask(engine: Engine) -> float:
        return seconds(lambda: engine.submit(job).result())

    return hosted({job.model: model}, limits, ask)


@torch.inference_mode()
def by_loop(model: DiffusionModel, x_0: torch.Tensor, count: int) -> None:
    """Compute `count` terms, one t after the other."""
    row = torch.arange(len(x_0), device=x_0.device)
    for t in range(count, 0, -1):
        noise = counter_noise(0, row, t, Stream.TERM)
        terms(model, x_0, torch.full_like(row, t), noise, model.space.default_convention)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/mnist"))
    parser.add_argument("--data", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--terms", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    asked = parser.parse_args()
    print(machine())
    keep_freed_memory()  # as the service does; it helps both
    model, _ = load(asked.model / "model.safetensors", asked.device)
    convention = model.space.default_convention
    rows: list[list[str]] = []
    for count in asked.data:
        x_0 = torch.zeros(count, *model.event)
        row = torch.arange(count)
        steps = choose_steps(model.T, row, 0, convention, asked.terms)
        ours = partial(by_engine, model, BoundJob("m", x_0, 0, steps, convention))
        theirs = partial(seconds, partial(by_loop, model, x_0.to(model.device), asked.terms))
        found = compare(ours, theirs, asked.rounds)
        rows.append([str(count), *found.cells(count * asked.terms / 1000)])
        print(rows[-1], flush=True)
    head = ["data", "ours, ms a term", "plain loop, ms a term", "times as fast"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
