"""Shared by all endpoints: the forms of an answer, and the limits that are checked first."""

import base64
import secrets
from abc import ABC, abstractmethod
from typing import Any, Generic, Self, TypeVar

from pydantic import BaseModel
from torch import Tensor

from diffusion.samplers import Plan, Sampler
from service.catalogue import Served
from service.codecs.contact_sheet import Strip, check_sheet, contact_sheet, image
from service.codecs.json import BINARY, EVENTS, JSON, PNG, plain, to_binary, to_json
from service.codecs.rows import CSV, Table, check_rows_form, to_csv
from service.engine.jobs import Job
from service.engine.results import JobPreview
from service.errors import TooExpensive, refusal
from service.schemas.responses import Preview, RowState
from service.state import Backend

Result = TypeVar("Result")
AnySampler = TypeVar("AnySampler", bound=Sampler)


class Work(ABC, Generic[Result]):
    """A request that is ready to run: its job for the engine, and how to render the result.

    Attributes:
        served: the model that answers.
        job: the work for the engine.
        offers: the forms of the answer, the default first.
    """

    offers: tuple[str, ...] = (JSON, PNG, BINARY, EVENTS, CSV)
    served: Served
    job: Job[Any]

    @classmethod
    @abstractmethod
    def prepare(cls, request: Any, backend: Backend) -> Self:  # noqa: ANN401
        """Check a request and prepare its work; raise a Problem if it is not possible."""

    def room(self, size: int) -> int:
        """Estimate the bytes of the answer in all forms, of a job that holds `size` bytes.

        It holds 4 bytes of each number, which takes as many in JSON and CSV if it is one of 0..255,
        else up to 20.
        """
        short = self.served.model.space.greatest is not None
        return (4 if short else 12) * size + 2**16

    def check(self, form: str) -> None:
        """Raise InvalidRequest if the answer does not fit into `form`."""
        if form == PNG:
            check_sheet(self.served.model.space, *self.layout)
        if form == CSV:
            check_rows_form(self.served.model.space)

    def render(self, result: Result, form: str) -> bytes:
        """Render the answer in one of `offers`."""
        if form == PNG:
            return contact_sheet(self.served.model.space, self.strips(result))
        if form == CSV:
            return to_csv(*self.lines(result))
        if form == BINARY:
            answer = self.answer(result).model_dump(exclude=self.arrays)
            return to_binary(answer, self.tensors(result))
        return to_json(self.answer(result).model_dump())

    @property
    @abstractmethod
    def arrays(self) -> dict[str, Any]:
        """Return the fields that are tensors in a binary answer, as pydantic's `exclude`."""

    @abstractmethod
    def answer(self, result: Result) -> BaseModel:
        """Build the documented answer, with arrays in place of lists."""

    @abstractmethod
    def tensors(self, result: Result) -> dict[str, Tensor]:
        """Return the arrays of a binary answer."""

    @abstractmethod
    def lines(self, result: Result) -> Table:
        """Return the names and lines of an answer as CSV."""

    @property
    def layout(self) -> tuple[int, int]:
        """Return a contact sheet's number of strips, and of samples per strip."""
        raise NotImplementedError(f"{type(self).__name__} offers no picture")

    def strips(self, result: Result) -> list[Strip]:
        """Return the strips of a contact sheet."""
        raise NotImplementedError(f"{type(self).__name__} offers no picture")

    def preview(self, preview: JobPreview, count: int) -> Preview:
        """Render the current state of the job's first `count` rows; waits for the device."""
        space = self.served.model.space
        x_0 = self.estimates(preview.x_0())
        drawn: list[Any] = list(plain(x_0, space))
        for i, picture in enumerate(image(x, space) for x in x_0):
            if picture is not None:
                drawn[i] = base64.b64encode(picture).decode()
        states: list[RowState] = ["finished" if ended else "running" for ended in preview.finished]
        for _ in range(len(drawn), min(count, self.job.samples)):
            states.append("waiting")
            drawn.append(None)
        return Preview(step=preview.done, rows=states, estimates=drawn)

    def estimates(self, x_0: Tensor) -> Tensor:
        """Convert the job's first rows [k, *event] from model units to data units."""
        return self.served.model.space.to_data(x_0)


def seed_or_new(seed: int | None) -> int:
    """Return the request's seed, or a new one that every JSON reader can represent exactly."""
    return secrets.randbelow(2**32) if seed is None else seed


def check_rows(count: int, location: str, limit: int, setting: str) -> None:
    """Raise TooExpensive if `count` exceeds a limit of the settings."""
    if count > limit:
        raise TooExpensive(
            f"{location} is more than one request may ask for.",
            location=location,
            received=count,
            expected=f"at most {limit}",
            fix=f"Ask for fewer, or in several requests; the operator sets the limit ({setting}).",
        )


def make_plan(sampler: Sampler, served: Served, start: int | None = None) -> Plan:
    """Plan the sampler's steps for this model; raise InvalidRequest if it cannot have them."""
    try:
        return sampler.plan(served.model, start)
    except ValueError as error:
        raise refusal(error, "sampler", sampler.model_dump()) from None


def with_steps(sampler: AnySampler, served: Served) -> AnySampler:
    """Fill in the sampler's number of steps."""
    return sampler if sampler.steps else sampler.model_copy(update={"steps": served.model.T})
