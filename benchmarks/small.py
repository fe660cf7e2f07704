"""Compare the engine's samples per second on small networks with diffusers' own loop.

    python -m benchmarks.small [--models models] [--sizes 1 16 256 4096] [--device cpu]

Overhead dominates small networks. diffusers has no binomial process, so for `heartbeat` its loop
runs the same network as a Gaussian one with as many steps, which is less work. `--alone` bypasses
the engine (`diffusion.samplers.sample`) and measures the thread's CPU time, for busy machines.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from benchmarks.hosted import hosted
from benchmarks.measure import compare, machine, seconds, table
from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.samplers import Ancestral, sample
from service.engine.device.network import NetworkCalls
from service.engine.engine import Engine
from service.engine.jobs import SampleJob
from service.memory import keep_freed_memory
from service.settings import Settings

PREDICTION = {"v": "v_prediction", "x_0": "sample", "eps": "epsilon"}


def ours(model: DiffusionModel, job: SampleJob) -> float:
    """Time one job through the engine, seconds."""
    limits = Settings(max_request_cost=10**9, max_queue_cost=10**9)

    def ask(engine: Engine) -> float:
        return seconds(lambda: engine.submit(job).result())

    return hosted({job.model: model}, limits, ask)


def cpu_seconds(act: Callable[[], object]) -> float:
    """Measure this thread's CPU time during one call."""
    begun = time.thread_time()
    act()
    return time.thread_time() - begun


@torch.inference_mode()
def their_samples(model: DiffusionModel, scheduler: DDPMScheduler, rows: int) -> torch.Tensor:
    """Sample by diffusers' loop, as in DDPMPipeline."""
    x = torch.randn(rows, *model.event, device=model.device)
    network, T = model.network, model.T
    snr = model.process.log_snr(torch.arange(T + 1, device=x.device)).float()
    for step in scheduler.timesteps:
        time = snr[step + 1] if network.clock == "log_snr" else step.float()
        x = scheduler.step(network(x, time.expand(rows)), step, x).prev_sample
    return x


def their_scheduler(model: DiffusionModel) -> DDPMScheduler:
    """Build a scheduler with the same betas, prediction and kind of variance."""
    learned = model.variance in ("moment", "interpolated")
    scheduler = DDPMScheduler(
        num_train_timesteps=model.T,
        trained_betas=model.process.beta[1:].clamp(max=0.999).tolist(),
        prediction_type=PREDICTION[model.prediction],
        variance_type="learned" if learned else "fixed_small",
        clip_sample=False,
    )
    scheduler.set_timesteps(model.T, device=model.device)
    return scheduler


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--names", nargs="+", default=["swissroll", "heartbeat"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 256, 4096])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--alone", action="store_true", help="without the engine, CPU time")
    asked = parser.parse_args()
    clock = cpu_seconds if asked.alone else seconds
    print(machine())
    keep_freed_memory()  # as the service does; it helps both
    rows: list[list[str]] = []
    for name in asked.names:
        path = asked.models / name / "model.safetensors"
        model, _ = load(path, asked.device)
        plain, _ = load(path, asked.device)
        scheduler, plan = their_scheduler(plain), Ancestral().plan(model)
        NetworkCalls(model)  # puts the weights in the engine's memory layout
        for size in asked.sizes:
            mine = partial(ours, model, SampleJob(name, size, 0, plan))
            if asked.alone:
                mine = partial(cpu_seconds, partial(sample, model, size, seed=0))
            theirs = partial(clock, partial(their_samples, plain, scheduler, size))
            found = compare(mine, theirs, asked.rounds)
            rows.append([name, str(size), *found.cells(1e-6 * model.T)])
            print(rows[-1], flush=True)
    head = ["model", "samples", "ours, us a step", "diffusers, us a step", "times as fast"]
    print(table(head, rows))


if __name__ == "__main__":
    main()
