"""The systems compared: how to start each and send it requests."""

import dataclasses
import random
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.http import BINARY, Answer
from benchmarks.server import Server, serving
from benchmarks.serving.network import MODELS, SIDE, T
from benchmarks.serving.requests import Request

Call = tuple[str, Mapping[str, Any]]  # path, body


@dataclass(frozen=True)
class Deployment:
    """An operator's settings, the same for all systems that have them.

    Attributes:
        folder: the folder that `network.write` filled.
        threads: CPU threads for the network.
        batch: the most rows per network call.
        queue: network evaluations that noneq queues before it refuses; 0 for its default. The peers
            have no such bound.
    """

    folder: Path
    threads: int
    batch: int
    queue: int = 0

    def bounded(self, queue: int) -> "Deployment":
        """Return the same settings with this queue size."""
        return dataclasses.replace(self, queue=queue)


@dataclass(frozen=True)
class System:
    """A way to serve the network.

    Attributes:
        name: name in reports.
        start: starts its process and waits until it is ready.
        call: converts a request to its form.
    """

    name: str
    start: Callable[[Deployment], AbstractContextManager[Server]]
    call: Callable[[Request], Call]


def accepted(request: Request) -> str:
    """Choose a compact form of the answer, so that encoding does not decide the comparison."""
    return "application/json" if request.kind == "likelihood" else BINARY


def good(request: Request, answer: Answer) -> bool:
    """Return whether an answer is complete: a whole sample in float32, or a bound."""
    if answer.status != 200:
        return False
    if request.kind == "likelihood":
        return b'"bound":' in answer.body.replace(b" ", b"")
    return len(answer.body) >= 4 * SIDE**2


def _example(seed: int) -> list[list[list[int]]]:
    levels = random.Random(seed).choices(range(256), k=SIDE**2)
    return [[levels[i : i + SIDE] for i in range(0, SIDE**2, SIDE)]]


def _start_noneq(chosen: Deployment) -> AbstractContextManager[Server]:
    arguments = [
        *("--models", str(chosen.folder / MODELS)),
        *("--batch-size", str(chosen.batch)),
        *("--threads", str(chosen.threads)),
        *("--log-level", "warning"),
    ]
    if chosen.queue:
        arguments += ["--max-queue-cost", str(chosen.queue), "--max-request-cost", str(T)]
    return serving("service", arguments, "/health/ready")


def _ask_noneq(request: Request) -> Call:
    if request.kind == "likelihood":
        return "/loglik", {
            "data": [_example(request.seed)],
            "terms": request.cost,
            "seed": request.seed,
        }
    sampler: dict[str, Any] = {"name": "ddim", "steps": request.cost}
    if request.kind == "long":
        sampler = {"name": "ancestral"}
    return "/sample", {"sampler": sampler, "seed": request.seed}


def _start_pipelines(chosen: Deployment) -> AbstractContextManager[Server]:
    arguments = [str(chosen.folder), "--threads", str(chosen.threads)]
    return serving("benchmarks.serving.pipelines", arguments, "/health")


def _ask_pipelines(request: Request) -> Call:
    if request.kind == "likelihood":
        return "/loglik", {"data": _example(request.seed), "terms": request.cost}
    return "/sample", {"steps": request.cost, "seed": request.seed}


def _start_batches(chosen: Deployment, *flags: str) -> AbstractContextManager[Server]:
    arguments = [str(chosen.folder), "--threads", str(chosen.threads)]
    arguments += ["--batch", str(chosen.batch), *flags]
    return serving("benchmarks.serving.batches", arguments, "/health")


def _start_lanes(chosen: Deployment) -> AbstractContextManager[Server]:
    return _start_batches(chosen, "--lanes")


def _ask_batches(request: Request) -> Call:
    return "/predict", _ask_pipelines(request)[1]


def _ask_lanes(request: Request) -> Call:
    path = "/long" if request.kind == "long" else "/predict"
    return path, _ask_pipelines(request)[1]


SYSTEMS: Final = {
    system.name: system
    for system in (
        System("diffusers", _start_pipelines, _ask_pipelines),
        System("litserve", _start_batches, _ask_batches),
        System("litserve-lanes", _start_lanes, _ask_lanes),
        System("noneq", _start_noneq, _ask_noneq),
    )
}
