"""What tracing costs: `python -m benchmarks.tracing --model mnist`.

Two services of one model run side by side, one of which sends traces to a collector. They get the
same requests in turns: without tracing, with every request traced, and with a tenth of them (by the
caller's decision in `traceparent`). The collector, here, takes what it is sent, and answers. The
processor time of the service's process per request is compared, which others on the machine do not
lengthen much, and the median time of a request.
"""

import argparse
import secrets
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

from benchmarks.server import HOST, serving

_MODELS = Path(__file__).parents[1] / "models"
_TICK = 100  # of /proc's processor times, a second
_WARM = 20  # requests before any is counted


class _Collector(BaseHTTPRequestHandler):
    """Takes spans and answers."""

    received = 0

    def do_POST(self) -> None:
        """Read the body and thank for it."""
        type(self).received += len(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def collector() -> Iterator[str]:
    """A collector's address."""
    server = ThreadingHTTPServer((HOST, 0), _Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{HOST}:{server.server_address[1]}"
    finally:
        server.shutdown()


def processor_seconds(pid: int) -> float:
    """The processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def main() -> None:
    """Run it and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--requests", type=int, default=1000, help="to each service")
    parser.add_argument("--samples", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20, help="of each request's chains")
    given = parser.parse_args()
    body = {"num_samples": given.samples, "sampler": {"name": "ddim", "steps": given.steps}}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        (Path(folder) / given.model).symlink_to(_MODELS / given.model)
        arguments = ["--models", folder, "--batch-size", "32", "--log-level", "warning"]
        endpoint = ["--otlp-endpoint", stack.enter_context(collector())]

        plain = stack.enter_context(serving("service", arguments, "/health/ready"))
        traced = stack.enter_context(serving("service", [*arguments, *endpoint], "/health/ready"))
        servers = {"no traces": plain, "every request": traced, "a tenth": traced}
        clients = {
            name: stack.enter_context(
                httpx.Client(base_url=f"http://{HOST}:{server.port}", timeout=300)
            )
            for name, server in servers.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in servers}
        spent: dict[str, list[float]] = {name: [] for name in servers}
        for client in clients.values():
            for _ in range(_WARM):
                client.post("/sample", json=body).raise_for_status()
        rounds, each = 20, given.requests // 20
        for _ in range(rounds):
            for name, server in servers.items():
                before = processor_seconds(server.pid)
                for number in range(each):
                    sampled = name != "a tenth" or number % 10 == 0
                    begun = time.perf_counter()
                    headers = {"traceparent": f"00-{secrets.token_hex(16)}-{1:016x}-0{sampled:d}"}
                    answer = clients[name].post("/sample", json=body, headers=headers)
                    answer.raise_for_status()
                    seconds[name].append(time.perf_counter() - begun)
                spent[name].append((processor_seconds(server.pid) - before) / each)
        print(f"{given.model}, {rounds * each} requests of {body} to each service")
        base, names = statistics.median(spent["no traces"]), list(servers)
        for name in names:
            pairs = zip(spent[name], spent["no traces"], strict=True)
            differences = [own - plain for own, plain in pairs]
            error = statistics.stdev(differences) / rounds**0.5
            print(
                f"  {name}: {1000 * statistics.mean(spent[name]):.2f} ms of processor time each, "
                f"{100 * statistics.mean(differences) / base:+.1f} % "
                f"(standard error {100 * error / base:.1f} %); "
                f"median {1000 * statistics.median(seconds[name]):.1f} ms"
            )
        print(f"  bytes that the collector received: {_Collector.received}")


if __name__ == "__main__":
    main()
