"""Reload a model of a service under load: `python -m benchmarks.reloads --model mnist`.

A service is started on a folder with one model. Callers send short requests one after the other,
each by its own connection and without retries. Before, and then while the model is reloaded again
and again, each time with other weights (rewritten beside, renamed, `POST /models/NAME/load`):

- how many requests failed, and how many answers are of the version before and after;
- the median and 99th percentile of a request, with and without reloads;
- how long a reload took;
- the process's resident memory after the first reloads and after the last, once it is idle.
"""

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from benchmarks.server import HOST, serving

_MODELS = Path(__file__).parents[1] / "models"
_FILE = "model.safetensors"
_QUIET = 12.0  # seconds until the service has returned what it freed


@dataclass
class Seen:
    """What the callers saw.

    Attributes:
        seconds: of each answered request.
        outcomes: number of requests by status.
        versions: number of answers by the checksum of the version.
    """

    seconds: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)


def ask(url: str, body: dict[str, object], ended: threading.Event, seen: Seen) -> None:
    """Send a request after the other until `ended`."""
    with httpx.Client(base_url=url, timeout=300) as client:
        while not ended.is_set():
            begun = time.perf_counter()
            try:
                response = client.post("/sample", json=body)
            except httpx.HTTPError as error:
                seen.outcomes[type(error).__name__] += 1
                continue
            seen.outcomes[str(response.status_code)] += 1
            if response.status_code == 200:
                seen.seconds.append(time.perf_counter() - begun)
                seen.versions[response.json()["checksum"]] += 1


class Callers:
    """Callers in threads, who ask until the block is left."""

    def __init__(self, url: str, body: dict[str, object], count: int) -> None:
        self.seen, self._ended = Seen(), threading.Event()
        arguments = (url, body, self._ended, self.seen)
        self._threads = [threading.Thread(target=ask, args=arguments) for _ in range(count)]

    def __enter__(self) -> Seen:
        for thread in self._threads:
            thread.start()
        return self.seen

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


def variants(path: Path) -> list[Path]:
    """Two artefacts beside each other: the model, and the same with weights a little larger."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    names = [name for name in tensors if name.startswith("network.")]
    changed = {
        name: 1.001 * x if name in names and torch.is_floating_point(x) else x
        for name, x in tensors.items()
    }
    other = path.with_name("other")
    save_file(changed, other, metadata=metadata)
    one = path.with_name("one")
    shutil.copy(path, one)
    return [other, one]


def resident(pid: int) -> float:
    """MiB of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def summary(seen: Seen) -> str:
    """Requests, and their median and tail."""
    tail = statistics.quantiles(seen.seconds, n=100)[98]
    failed = sum(seen.outcomes.values()) - len(seen.seconds)
    return (
        f"{len(seen.seconds)} answered, {failed} failed; median "
        f"{1000 * statistics.median(seen.seconds):.0f} ms, 99th percentile {1000 * tail:.0f} ms"
    )


def main() -> None:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="gaussian-mixture")
    parser.add_argument("--reloads", type=int, default=50)
    parser.add_argument("--callers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="of each request's chains")
    given = parser.parse_args()
    body = {"num_samples": 4, "sampler": {"name": "ddim", "steps": given.steps}}
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / given.model
        shutil.copytree(_MODELS / given.model, home)
        files = variants(home / _FILE)
        with serving("service", ["--models", folder], "/health/ready") as server:
            url = f"http://{HOST}:{server.port}"
            with Callers(url, body, given.callers) as quiet:
                time.sleep(15)
            took, memory = [], {}
            with httpx.Client(base_url=url, timeout=600) as client:
                callers = Callers(url, body, given.callers)
                with callers as busy:
                    for number in range(1, given.reloads + 1):
                        fresh = home / "fresh"
                        shutil.copy(files[number % 2 - 1], fresh)
                        fresh.replace(home / _FILE)
                        response = client.post(f"/models/{given.model}/load")
                        response.raise_for_status()
                        took.append(response.json()["seconds"])
                        memory[number] = resident(server.pid)
                time.sleep(_QUIET)
                memory[given.reloads + 1] = resident(server.pid)
        print(f"{given.model}, {given.callers} callers of {body}")
        print(f"  without reloads: {summary(quiet)}")
        print(f"  with {given.reloads} reloads: {summary(busy)}")
        print(f"  answers by version: {sorted(busy.versions.values())}")
        print(f"  a reload: median {statistics.median(took):.2f} s, longest {max(took):.2f} s")
        points = [n for n in (1, 5, 10, 20, 30, 40, given.reloads) if n in memory]
        told = ", ".join(f"{memory[n]:.0f} after {n}" for n in points)
        print(f"  resident MiB: {told}; idle {memory[given.reloads + 1]:.0f}")
        if sum(busy.outcomes.values()) != len(busy.seconds):
            raise SystemExit(f"requests failed: {busy.outcomes}")


if __name__ == "__main__":
    main()
