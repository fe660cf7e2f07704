"""Start a server as a process, wait until it is ready, and end it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

HOST: Final = "127.0.0.1"
_START = 180.0  # seconds, enough for a first import of everything on a busy machine


@dataclass(frozen=True)
class Server:
    """A server that is ready.

    Attributes:
        port: on localhost.
        pid: of its process, or of the first one if there are several.
        seconds: from the process's start to readiness.
    """

    port: int
    pid: int
    seconds: float


@contextlib.contextmanager
def serving(module: str, arguments: Sequence[str], ready: str) -> Iterator[Server]:
    """Run `python -m module ... --port PORT` on a free port until the block is left.

    Args:
        module: the module to run.
        arguments: arguments before the port.
        ready: the path that answers 200 once the server is ready.

    Raises:
        RuntimeError: it ended or did not get ready, with the end of its output.
    """
    port = _free_port()
    command = [sys.executable, "-m", module, *arguments, "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if not _until(lambda: answers(port, ready), process):
                log.seek(0)
                said = log.read()[-2000:]
                raise RuntimeError(f"{' '.join(command)} did not get ready; it said:\n{said}")
            yield Server(port, process.pid, time.perf_counter() - begun)
        finally:
            _end(process)


def answers(port: int, path: str) -> bool:
    """Return whether a GET answers 200 now."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]") -> bool:
    end = time.monotonic() + _START
    while time.monotonic() < end and process.poll() is None:
        if ready():
            return True
        time.sleep(0.02)
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and its workers immediately."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
