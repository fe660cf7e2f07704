"""What is done to a block of a data set: one row out for each row in."""

import asyncio
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar, final

import httpx
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import override

from deploy.ray.blocks import Block, Pictures
from noneq import AsyncClient, images
from noneq.errors import FileError
from noneq.models import ModelFacts
from service.app import create_app
from service.errors import NotReady
from service.settings import Settings
from service.state import Backend

Columns = dict[str, list[Any]]
T = TypeVar("T")


class Task(BaseModel, ABC):
    """A task with its options. A block's seed is `seed` + the number of its first row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="Name of the model, a folder in the folder of models.")
    seed: int = Field(0, ge=0, lt=2**62, description="Of the noise.")

    @abstractmethod
    async def run(self, client: AsyncClient, facts: ModelFacts, block: Block) -> Columns:
        """Columns of what came out, a value for each row of the block."""

    def seed_of(self, block: Block) -> int:
        """The seed of a block."""
        return self.seed + block.first


@final
class Score(Task):
    """How typical each row or picture is of what the model was fitted to."""

    terms: int | None = Field(None, ge=1, description="Terms of a bound; None for the default.")

    @override
    async def run(self, client: AsyncClient, facts: ModelFacts, block: Block) -> Columns:
        options: dict[str, Any] = {"model": self.model, "seed": self.seed_of(block)}
        if self.terms is not None:
            options["terms"] = self.terms
        if isinstance(block, Pictures):
            values, known = block.values(facts)
            if not known.all():
                raise FileError(f"{_first_open(block, known)}: transparent; `repair` completes it")
            found = await client.loglik(values, **options)
            columns: Columns = {"file": block.files()}
            for name in ("bound", "standard_error", "bits_per_dim", "rarer_than", "typicality"):
                column = getattr(found, name)
                columns[name] = [None] * block.count if column is None else column.tolist()
            return columns
        names, lines = (await client.score(block.cells(), **options)).lines()
        return dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))


@final
class Impute(Task):
    """A table without gaps: what was there is unchanged."""

    draws: int = Field(20, ge=1, description="Draws of each gap.")
    fill: Literal["median", "mean", "draw"] = Field(
        "median", description="What a gap gets: the draws' median, mean, or the first of them."
    )

    @override
    async def run(self, client: AsyncClient, facts: ModelFacts, block: Block) -> Columns:
        options: dict[str, Any] = {"model": self.model, "seed": self.seed_of(block)}
        found = await client.impute(block.cells(), self.draws, **options)
        if self.fill == "draw":
            lines = found.cells(0)
        else:
            lines = found.median() if self.fill == "median" else found.mean()
        columns = dict(zip(found.table.names, map(list, zip(*lines, strict=True)), strict=True))
        for column in facts.table or ():  # what was given in CSV is text, what was drawn a number
            if not column.labels:
                columns[column.name] = [float(x) for x in columns[column.name]]
        warnings = [found.warnings.get(i) for i in range(block.count)]
        return {**columns, "warning": warnings}


@final
class Repair(Task):
    """Pictures whose transparent pixels are completed, as PNG."""

    draws: int = Field(4, ge=1, description="Completions of each picture.")
    fill: Literal["mean", "draw"] = Field(
        "draw", description="Which picture comes out: the first completion, or their mean."
    )

    @override
    async def run(self, client: AsyncClient, facts: ModelFacts, block: Block) -> Columns:
        if not isinstance(block, Pictures):
            raise FileError(f"{block.file}: a table, where `repair` is for pictures: use `impute`")
        values, known = block.values(facts)
        gaps = np.flatnonzero(~known.reshape(len(known), -1).all(1))
        done, warnings = values.copy(), [None] * block.count
        if len(gaps):
            found = await client.inpaint(
                values[gaps],
                known[gaps],
                model=self.model,
                seed=self.seed_of(block),
                num_samples=self.draws,
            )
            done[gaps] = found.mean if self.fill == "mean" else found.samples[:, 0]
            for i, told in zip(gaps, found.diagnostics, strict=True):
                warnings[i] = told.get("warning")
        pictures = [images.to_png(_pixels(x)) for x in done]
        return {"file": block.files(), "image": pictures, "warning": warnings}


def _pixels(x: np.ndarray) -> np.ndarray:
    """A picture [C, H, W] of 0..255 as [H, W] or [H, W, C]."""
    levels = np.clip(np.rint(x), 0, 255).astype(np.uint8)
    return levels[0] if len(levels) == 1 else np.moveaxis(levels, 0, -1)


def _first_open(block: Pictures, known: np.ndarray) -> str:
    return block.names[int(np.argmin(known.reshape(len(known), -1).all(1)))]


@final
class Engine:
    """A server in this process, for one model, and its client.

    Args:
        models: the folder of models.
        model: which one is loaded.
        values: the settings that differ from their defaults.
    """

    def __init__(self, models: str, model: str, values: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()  # of this model alone
        Path(self._folder.name, model).symlink_to(Path(models, model).resolve())
        settings = Settings.model_validate({**values, "models": Path(self._folder.name)})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        app = create_app(settings)
        self._lifespan = app.router.lifespan_context(app)
        self.wait(self._lifespan.__aenter__())
        self.wait(_ready(app.state.backend))
        transport = httpx.ASGITransport(app)
        self.client = AsyncClient(transport=transport, timeout=None)
        self.facts = self.wait(_facts(self.client, model))

    def close(self) -> None:
        """Stop the server."""
        self.wait(self.client.close())
        self.wait(self._lifespan.__aexit__(None, None, None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._folder.cleanup()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def run(self, task: Task, block: Block) -> pa.Table:
        """Do a task on a block: one row for each of the block's, numbered by `row`."""
        columns = self.wait(task.run(self.client, self.facts, block))
        rows = list(range(block.first, block.first + block.count))
        return pa.table({"row": rows, **columns})


async def _ready(backend: Backend) -> None:
    """Wait until requests are accepted; raise what is in the way."""
    while isinstance(problem := backend.state(), NotReady) and problem.retry_after <= 2:
        await asyncio.sleep(0.02)
    backend.check()


async def _facts(client: AsyncClient, model: str) -> ModelFacts:
    return await client.model(model)
