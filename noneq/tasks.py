"""What takes several requests: the rows of a table are filled, scored and drawn in blocks.

A task yields requests, is sent their answers, and returns its result, so that both clients run it.
A block that is too much for one request is halved.
"""

import re
import secrets
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar, Unpack

import numpy as np

from noneq import requests
from noneq.codec import Body, Timing
from noneq.errors import BadRequest, FileError, TooLarge
from noneq.models import ModelFacts
from noneq.requests import LoglikOptions, PosteriorOptions, Request, SampleOptions
from noneq.responses import Likelihoods, Posterior, Samples
from noneq.tables import Imputed, Scores, Table, is_limit

__all__ = ["generate", "impute", "score"]

T = TypeVar("T")
Task = Generator[Request[Any], Any, T]
Block = Sequence[int]

_ROWS = 256  # rows of a request
_DRAWS = 4096  # samples of a request: the service's default limit


def impute(
    data: Any,  # noqa: ANN401  (see `tables.Data`)
    draws: int = 20,
    **options: Unpack[PosteriorOptions],
) -> Task[Imputed]:
    """Fill the gaps of a table m times, given each row's other cells: POST /inpaint.

    Args:
        data: a DataFrame, objects by name, lists, or CSV (a path or text). None, NaN and empty
            cells are gaps; "<0.01" and {"between": [1, 2]} limit a number that is then drawn.
        draws: m.
        options: method, steps, ... (`PosteriorOptions`), and the options of every call.
    """
    facts, options["model"] = yield from _facts(options)
    table, columns = Table.read(data, facts), facts.table or ()
    places = table.places(columns)
    free = np.array(
        [[row[j] is None or is_limit(row[j]) for j in places] for row in table.cells]
    ).reshape(-1, len(columns))
    rows = np.flatnonzero(free.any(1)).tolist()
    empty = [i for i in rows if all(table.cells[i][j] is None for j in places)]
    if empty:
        raise FileError(
            f"row {empty[0]} has nothing to go by: leave it out; `generate` draws whole rows"
        )
    seed, options["num_samples"] = _seed(options), draws

    def asking(block: Block) -> Request[Posterior]:
        options["seed"] = (seed + block[0]) % 2**63
        return requests.fill(table.objects(block, columns), **options)

    found = yield from _each(rows, max(1, min(_ROWS, _DRAWS // draws)), asking)
    told = [one for _, answer in found for one in answer.diagnostics]
    warnings = {i: one["warning"] for i, one in zip(rows, told, strict=True) if one.get("warning")}
    return Imputed(
        table,
        columns,
        rows,
        free[rows],
        np.concatenate([np.empty((0, draws, len(columns))), *(x.samples for _, x in found)]),
        facts.name,
        seed,
        found[0][1].method if found else None,
        warnings,
        next((one["calibration"] for one in told if one.get("calibration")), None),
    )


def score(data: Any, **options: Unpack[LoglikOptions]) -> Task[Scores]:  # noqa: ANN401
    """Say how typical each row of a table is, and because of which columns: POST /loglik.

    Args:
        data: as in `impute`; gaps are left out.
        options: terms, ... (`LoglikOptions`), and the options of every call.
    """
    facts, options["model"] = yield from _facts(options)
    table, columns = Table.read(data, facts), facts.table or ()
    seed = _seed(options)

    def asking(block: Block) -> Request[Likelihoods]:
        options["seed"] = (seed + block[0]) % 2**63
        return requests.rate(table.objects(block, columns), **options)

    found = yield from _each(range(len(table.cells)), _ROWS, asking)

    def joined(name: str, *shape: int) -> Any:  # noqa: ANN401  (an array)
        parts = [
            answer.body.tensors.get(name, np.full((len(block), *shape), np.nan))
            for block, answer in found
        ]
        return np.concatenate([np.empty((0, *shape)), *parts])

    return Scores(
        table,
        columns,
        joined("bound"),
        joined("standard_error"),
        joined("rarer_than"),
        joined("typicality"),
        joined("column_nats", len(columns)),
        joined("column_rarer_than", len(columns)),
        facts.name,
        seed,
        next((answer.uncompared for _, answer in found if answer.uncompared), None),
    )


def generate(
    count: int = 1,
    given: Mapping[str, Any] | None = None,
    *,
    steps: int | None = None,
    **options: Unpack[SampleOptions],
) -> Task[Samples]:
    """Draw rows of a table: POST /sample, or /inpaint where cells are given.

    Args:
        count: how many.
        given: cells that all of them have, by column: {"kind": "Gentoo", "mass": ">5000"}.
        steps: the chain's steps; None for the service's choice.
        options: of every call.
    """
    seed = _seed(options)

    def asking(block: Block) -> Request[Any]:
        options["seed"] = (seed + block[0]) % 2**63
        if given is None:
            return requests.sample(len(block), steps=steps, **options)
        return requests.fill([given], num_samples=len(block), steps=steps, **options)

    found = yield from _each(range(count), _DRAWS, asking)
    parts = [answer.samples if given is None else answer.samples[0] for _, answer in found]
    fields = {name: x for name, x in found[0][1].body.fields.items() if name != "results"}
    return Samples(Body(fields, {"samples": np.concatenate(parts)}), Timing())


def _facts(options: Any) -> Task[tuple[ModelFacts, str]]:  # noqa: ANN401
    """Find the model that the options name, or the default."""
    name = options.get("model")
    if name is None:
        known = yield requests.models()
        name = known.default
        if name is None:
            names = ", ".join(model.name for model in known.models)
            raise FileError(f"which model? model= one of {names or 'none: none is served'}")
    facts = yield requests.model(name)
    return facts, name


def _seed(options: Any) -> int:  # noqa: ANN401
    given = options.get("seed")
    return secrets.randbelow(2**32) if given is None else int(given)


def _each(
    rows: Sequence[int], size: int, asking: Callable[[Block], Request[T]]
) -> Task[list[tuple[Block, T]]]:
    """Send blocks of rows, and return each with its answer, in order."""
    waiting = deque(rows[i : i + size] for i in range(0, len(rows), size))
    found = []
    while waiting:
        block = waiting.popleft()
        try:
            found.append((block, (yield asking(block))))
        except TooLarge:
            if len(block) == 1:
                raise
            half = len(block) // 2
            waiting.extendleft((block[half:], block[:half]))
        except BadRequest as error:
            raise _placed(error, block) from None
    return found


def _placed(error: BadRequest, block: Block) -> BadRequest:
    """Name the row of the table where the service names a row of the block."""
    at = error.problem.get("index")
    if not isinstance(at, int) or not 0 <= at < len(block):
        return error
    row, text = block[at], str(error.problem.get("detail", ""))
    text = re.sub(rf"\b(row|example|observation) {at}\b", rf"\1 {row}", text, flags=re.IGNORECASE)
    return type(error)({**error.problem, "detail": text, "index": row}, error.retry_after)
