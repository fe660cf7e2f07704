"""Serve diffusers' pipelines with FastAPI, one request at a time.

This is the straightforward deployment: one thread owns the network and takes requests in order of
arrival; the event loop only waits. The queue is unbounded, as is the default.

    python -m benchmarks.serving.pipelines FOLDER --port 8001 --threads 2
"""

import argparse
import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from benchmarks.serving.peer import Peer


class Draw(BaseModel):
    """The body of a request for a sample."""

    steps: int
    seed: int


class Bound(BaseModel):
    """The body of a request for the bound of an example, [1, side, side] of 0..255."""

    data: list[list[list[int]]]
    terms: int


def create_app(folder: Path, threads: int) -> FastAPI:
    """Load the network and build the service."""
    worker = ThreadPoolExecutor(1)  # PyTorch's threads belong to the thread that calls it
    peer = worker.submit(Peer, folder, threads).result()
    app = FastAPI()

    async def run(act: Callable[[], Any]) -> Any:  # noqa: ANN401, whatever the act returns
        return await asyncio.get_running_loop().run_in_executor(worker, act)

    @app.get("/health")
    async def health() -> str:
        return "ok"

    @app.post("/sample")
    async def sample(asked: Draw) -> Response:
        found = await run(partial(peer.sample, asked.steps, [asked.seed]))
        return Response(found[0], media_type="application/octet-stream")

    @app.post("/loglik")
    async def loglik(asked: Bound) -> dict[str, float]:
        found = await run(partial(peer.bound, [asked.data], asked.terms))
        return {"bound": found[0]}

    return app


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    asked = parser.parse_args()
    uvicorn.run(create_app(asked.folder, asked.threads), port=asked.port, log_level="warning")


if __name__ == "__main__":
    main()
