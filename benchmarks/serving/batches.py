"""Serve diffusers' pipelines with LitServe, batching whole requests.

Requests with different numbers of steps cannot share a diffusers loop, so a batch is split into
groups of similar requests, which run one after the other; LitServe returns all answers of a batch
together. The batch is as large as noneq's and waits 20 ms to fill, which is little compared with
any request and nothing under load.

With `--lanes`, long draws have their own endpoint, queue and process on the same device, so that
short requests need not wait behind them if callers use the endpoint.

    python -m benchmarks.serving.batches FOLDER --port 8002 --threads 2 --batch 32
"""

import argparse
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import litserve
import orjson
import torch
from fastapi import Response

from benchmarks.serving.peer import Peer

Asked = Mapping[str, Any]  # a JSON body


class Batches(litserve.LitAPI):  # type: ignore[misc]  # it is Any to mypy
    """A queue of requests and the worker that takes them in batches."""

    def __init__(self, folder: Path, threads: int, batch: int, path: str = "/predict") -> None:
        super().__init__(max_batch_size=batch, batch_timeout=0.02, api_path=path)
        self.folder, self.threads = folder, threads

    def setup(self, device: str) -> None:  # noqa: ARG002, the peer chooses the same one
        """Load the peer in the worker."""
        self.peer = Peer(self.folder, self.threads)

    def predict(self, x: Sequence[Asked]) -> list[bytes]:
        """Answer a batch, group by group."""
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for i, asked in enumerate(x):
            groups["data" in asked, asked.get("steps"), asked.get("terms")].append(i)
        answers: dict[int, bytes] = {}
        for places in groups.values():
            answers |= zip(places, self._answer([x[i] for i in places]), strict=True)
        return [answers[i] for i in range(len(x))]

    def encode_response(self, output: bytes) -> Response:
        """Return the bytes unchanged."""
        return Response(output, media_type="application/octet-stream")

    def _answer(self, group: Sequence[Asked]) -> list[bytes]:
        first = group[0]
        if "data" not in first:
            return self.peer.sample(first["steps"], [asked["seed"] for asked in group])
        found = self.peer.bound([asked["data"] for asked in group], first["terms"])
        return [orjson.dumps({"bound": bound}) for bound in found]


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lanes", action="store_true")
    asked = parser.parse_args()
    paths = ("/predict", "/long") if asked.lanes else ("/predict",)
    apis = [Batches(asked.folder, asked.threads, asked.batch, path) for path in paths]
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    server = litserve.LitServer(apis, accelerator=accelerator, devices=1)
    server.run(host="127.0.0.1", port=asked.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
