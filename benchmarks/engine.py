"""Compare the engine's rows per second under a mixed load with the bare network's.

    python -m benchmarks.engine [--model models/mnist] [--batch 32] [--device cpu]

Both use the same batch size. The load keeps the batch full with a changing mix of chains of 50 and
250 steps by two samplers, half-hidden data, and terms of bounds.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.hosted import hosted
from benchmarks.measure import machine, seconds
from diffusion.checkpoint import load
from diffusion.likelihood.estimator import choose_steps
from diffusion.model import DiffusionModel
from diffusion.posterior import Observation
from diffusion.samplers import DDIM, Ancestral
from service.engine.device.network import NetworkCalls
from service.engine.engine import Engine
from service.engine.jobs import BoundJob, Job, SampleJob
from service.engine.results import Ticket
from service.memory import keep_freed_memory
from service.settings import Settings

_CALLS = 10


def load_of(model: DiffusionModel) -> Iterator[Job[Any]]:
    """Yield jobs endlessly."""
    convention = model.space.default_convention
    x_0 = torch.zeros(2, *model.event)
    known = torch.rand(4, *model.event) < 0.5
    for seed in itertools.count():
        yield SampleJob("m", 4, seed, DDIM(steps=50).plan(model))
        yield SampleJob("m", 4, seed, Ancestral(steps=250).plan(model))
        seen = Observation.of_reals(torch.zeros(4, *model.event), known)
        yield SampleJob("m", 4, seed, Ancestral(steps=50).plan(model), observation=seen)
        steps = choose_steps(model.T, torch.arange(2), seed, convention, 100)
        yield BoundJob("m", x_0, seed, steps, convention)


def engine_rate(model: DiffusionModel, batch: int, window: float) -> float:
    """Measure rows per second through the engine, kept full for `window` seconds."""
    settings = Settings(batch_size=batch, max_queue_cost=10**9)
    return hosted({"m": model}, settings, lambda engine: _keep_full(engine, model, window))


def _keep_full(engine: Engine, model: DiffusionModel, window: float) -> float:
    jobs = load_of(model)
    tickets: list[Ticket[Any]] = []

    def done() -> int:
        while sum(not ticket.future.done() for ticket in tickets) < 24:
            tickets.append(engine.submit(next(jobs)))
        return sum(ticket.done for ticket in tickets)

    done()
    time.sleep(min(2.0, window / 4))
    first, begun = done(), time.perf_counter()
    while time.perf_counter() - begun < window:
        time.sleep(0.05)
        last, ended = done(), time.perf_counter()
    return (last - first) / (ended - begun)


@torch.inference_mode()
def network_rate(model: DiffusionModel, batch: int, window: float) -> float:
    """Measure rows per second of the network alone, in the engine's memory layout."""
    NetworkCalls(model)
    device = model.device
    x = torch.randn(batch, *model.event, device=device)
    t = torch.randint(1, model.T + 1, (batch,), device=device)
    time_ = model.process.log_snr(t).float() if model.network.clock == "log_snr" else t - 1.0
    count, spent = 0, 0.0
    seconds(lambda: model.network(x, time_))
    while spent < window:
        # Make several calls per reading of the clock, so that a GPU's queue does not run dry.
        spent += seconds(lambda: [model.network(x, time_) for _ in range(_CALLS)])
        count += _CALLS * batch
    return count / spent


def main() -> None:
    """Measure both alternately and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=Path("models/mnist"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    asked = parser.parse_args()
    print(machine())
    keep_freed_memory()  # as the service does
    model, _ = load(asked.model / "model.safetensors", asked.device)
    ratios, beside = [], []
    for _ in range(asked.rounds):
        before = network_rate(model, asked.batch, asked.seconds / 2)
        ours = engine_rate(model, asked.batch, asked.seconds)
        after = network_rate(model, asked.batch, asked.seconds / 2)
        bare = (before + after) / 2
        ratios.append(ours / bare)
        beside.append(1000 * asked.batch * (1 / ours - 1 / bare))
        print(f"engine {ours:.1f} rows/s, network {before:.1f} and {after:.1f}", flush=True)
    print(
        f"beside the network: median {statistics.median(beside):.2f} ms a batch, "
        f"all {[round(ms, 2) for ms in sorted(beside)]}"
    )
    print(f"engine over network: median {statistics.median(ratios):.3f}, all {sorted(ratios)}")


if __name__ == "__main__":
    main()
