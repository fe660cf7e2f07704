"""Compare noneq with its peers over HTTP: throughput, latencies, refusals, losses.

    python -m benchmarks.serving [--systems ...] [--loads ...] [--seconds 16] [--rounds 3]

The same U-Net weights (network.py) run behind diffusers' pipelines one request at a time
(pipelines.py), LitServe with whole requests batched (batches.py; `litserve-lanes` separates long
requests), and noneq. Each is restarted for every load, alone on the machine, with the same CPU
threads; this process is the load generator. A request is for one sample or one example.

Closed loads keep `--clients` requests in flight, which saturates the server:

    uniform     DDIM of 50 steps
    mixed       nine in ten DDIM of 20, 30, 40 or 50 steps, one ancestral of 1000
    likelihood  alternately DDIM of 50 steps and bounds of 100 terms

Open loads arrive by a Poisson process, the same for all systems, whether they keep up or not:

    half, full, triple   the mixed load at 0.5, 1 and 3 times noneq's capacity: its evaluations/s
                         under `uniform`, measured first, divided by a mixed request's mean cost;
                         or `--capacity`

A load runs for half of `--seconds` before its window of `--seconds` begins; after an open load, up
to `--grace` seconds remain for answers. noneq has a queue that holds `--queue` seconds of work at
its capacity, to keep waits short, and otherwise its defaults. The peers' queues are unbounded
except for LitServe's default timeout of 30 seconds.
"""

import argparse
import asyncio
import dataclasses
import json
import random
import resource
import tempfile
from pathlib import Path
from typing import Final

from benchmarks.measure import machine
from benchmarks.serving import requests
from benchmarks.serving.load import Load
from benchmarks.serving.network import T, difference, write
from benchmarks.serving.results import Result, load_table, ratios, summarise
from benchmarks.serving.systems import SYSTEMS, Deployment, System

CLOSED: Final = {
    "uniform": requests.uniform,
    "mixed": requests.mixed,
    "likelihood": requests.likelihood,
}
OPEN: Final = {"half": 0.5, "full": 1.0, "triple": 3.0}


def measure(
    system: System, load: str, chosen: Deployment, asked: argparse.Namespace, capacity: float
) -> Result:
    """Measure one system under one load."""
    begin, end = asked.seconds / 2, 1.5 * asked.seconds
    closed = load in CLOSED
    order = CLOSED[load]() if closed else requests.mixed()
    with system.start(chosen) as server:

        async def drive() -> Result:
            under = Load(system, server.port, order)
            if closed:
                outcomes = await under.closed(asked.clients, end)
            else:
                coming = requests.arrivals(OPEN[load] * capacity)
                outcomes = await under.open(coming, end, asked.grace)
            return summarise(system.name, load, outcomes, begin, end, closed=closed)

        return asyncio.run(drive())


def compare(asked: argparse.Namespace, folder: Path) -> tuple[float, list[Result]]:
    """Measure the capacity, then every system under every load, in rounds."""
    chosen = Deployment(folder, asked.threads, asked.batch)
    cost = requests.mean_cost(requests.mixed())
    capacity = asked.capacity
    if not capacity:  # under `uniform`: too few long requests of a mixed load end in a window
        capacity = measure(SYSTEMS["noneq"], "uniform", chosen, asked, 0.0).evaluations / cost
    chosen = chosen.bounded(max(T, round(asked.queue * capacity * cost)))
    print(
        f"capacity: {capacity:.3g} mixed requests a second; noneq's queue holds {chosen.queue} "
        "network evaluations\n",
        flush=True,
    )
    results: list[Result] = []
    for turn in range(asked.rounds):
        for load in asked.loads:
            # Change the order every round, so that no system always follows the same other one.
            for name in random.Random(turn).sample(asked.systems, len(asked.systems)):
                results.append(measure(SYSTEMS[name], load, chosen, asked, capacity))
                last = results[-1]
                print(f"round {turn + 1}, {load}, {name}: {last.requests:.3g}/s", flush=True)
    return capacity, results


def report(results: list[Result], loads: list[str], systems: list[str]) -> str:
    """Format a Markdown table for each load, with noneq's ratio to each of the others."""
    parts = []
    for load in loads:
        own = [result for result in results if result.load == load]
        own.sort(key=lambda result: systems.index(result.system))
        parts.append(f"**{load}**\n\n{load_table(own)}")
        lines = [ratios(own, "noneq", other) for other in systems if other != "noneq"]
        parts.append("\n".join(f"- {line}" for line in lines if line))
    return "\n\n".join(part for part in parts if part)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=["diffusers", "litserve", "noneq"]
    )
    parser.add_argument("--loads", nargs="+", choices=[*CLOSED, *OPEN], default=[*CLOSED, *OPEN])
    parser.add_argument("--seconds", type=float, default=16.0, help="of the measured window")
    parser.add_argument("--grace", type=float, default=15.0, help="after an open load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's choice")
    parser.add_argument("--clients", type=int, default=16, help="of closed loads")
    parser.add_argument("--batch", type=int, default=32, help="most rows of a network call")
    parser.add_argument("--queue", type=float, default=8.0, help="seconds of work noneq accepts")
    parser.add_argument("--capacity", type=float, default=0.0, help="requests/s; 0: measured")
    parser.add_argument("--channels", type=int, nargs="+", default=[16, 32], help="of the U-Net")
    parser.add_argument("--out", type=Path, help="every result of every round, as JSON")
    return parser.parse_args()


def main() -> None:
    """Measure everything and print the tables."""
    asked = arguments()
    # Each waiting request needs a connection, here and at the servers, which inherit the limit.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, asked.channels)
        print(f"the networks' outputs differ by {difference(folder):.2g} at most", flush=True)
        capacity, results = compare(asked, folder)
    print(f"\n{report(results, asked.loads, asked.systems)}")
    if asked.out:
        document = {
            "machine": machine(),
            "arguments": {key: str(value) for key, value in vars(asked).items()},
            "capacity": capacity,
            "results": [dataclasses.asdict(result) for result in results],
        }
        asked.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
