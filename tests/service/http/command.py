"""The command itself, as a process of its own."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The command itself, ready: the process, its URL and the line that said so."""
    environment = {
        **os.environ,
        "NONEQ_MODELS": str(folder),
        "NONEQ_PORT": "0",
        "NONEQ_DEVICE": "cpu",
        "PYTHONWARNINGS": "error",
    }
    command = [sys.executable, "-m", "service", "--batch-size", "8", *flags]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found is not None, line
            yield process, found[0], line
        finally:
            process.kill()


@contextmanager
def asking(url: str, samples: int) -> Iterator[list[httpx.Response]]:
    """A request for samples that the engine is at work on; its answer is there at the end."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        asked = {"model": "gaussian-mixture", "num_samples": samples}
        answers.append(httpx.post(f"{url}/sample", json=asked, timeout=200))

    caller = threading.Thread(target=ask)
    caller.start()
    for _ in range(1000):
        if not re.search(r"^noneq_rows_running 0", httpx.get(f"{url}/metrics").text, re.M):
            break
    yield answers
    caller.join(200)


def metrics(url: str) -> dict[str, float]:
    """The samples of the exposition, by name and labels as they are written there."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    pairs = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    return {name: float(value) for name, _, value in pairs}


def post(url: str, asked: dict[str, Any], accept: str, *, whole: bool = True) -> socket.socket:
    """A connection over which a question has been sent, or half of it."""
    body = json.dumps(asked).encode()
    head = [
        "POST /sample HTTP/1.1",
        "Host: noneq",
        f"Accept: {accept}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    found = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    found.sendall("\r\n".join([*head, "", ""]).encode())
    found.sendall(body if whole else body[: len(body) // 2])
    return found
