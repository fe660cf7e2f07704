"""Scores of many data, in bounded memory and resumable: `noneq loglik`.

A score is a function of the datum's block, the seed and the settings alone, for each block has a
seed of its own, the first 63 bits of sha256("seed/" + its values): what is left out, or was done
before an interruption, changes no other line. A picture is a block, and so are 256 rows of a table.
"""

import csv
import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from noneq.answers import Likelihoods
from noneq.cli.reading import Block, FileError, expand, read
from noneq.client import Client
from noneq.errors import BadRequest, TooLarge, UnknownModel
from noneq.models import Model

Key = tuple[str, int]


@dataclass(frozen=True)
class Score:
    """A line of the table; nats but for `bits_per_dim`.

    Attributes:
        file: as it was named.
        row: the datum's place in it.
        model: that was asked.
        convention: what `bound` is the probability of.
        seed: of the command.
        bound: on log p(x_0), from below.
        standard_error: of this estimate.
        bits_per_dim: lower is likelier.
        relative_to_prior: K - L_null.
        rarer_than: the share of held-out data with a larger bound; NaN where not measured.
        typicality: a p-value, near 0 where the datum is unlike held-out ones; likewise.
    """

    file: str
    row: int
    model: str
    convention: str
    seed: int
    bound: float
    standard_error: float
    bits_per_dim: float
    relative_to_prior: float
    rarer_than: float
    typicality: float


COLUMNS = tuple(field.name for field in fields(Score))


@dataclass(frozen=True)
class Scoring:
    """How data are scored.

    Attributes:
        client: that asks.
        model: that answers.
        seed: of the command.
        settings: further arguments of `Client.loglik`.
        parallel: requests at a time.
    """

    client: Client
    model: Model
    seed: int
    settings: Mapping[str, Any]
    parallel: int = 8

    def score(self, block: Block) -> list[Score]:
        """The scores of a block."""
        found: Likelihoods = self.client.loglik(
            block.values, model=self.model.name, seed=block_seed(self.seed, block), **self.settings
        )
        names, rows = found.rows()
        return [
            Score(
                block.file,
                block.start + i,
                found.model,
                found.convention,
                self.seed,
                **dict(zip(names, row, strict=True)),  # type: ignore[arg-type]  # all numbers
            )
            for i, row in enumerate(rows)
        ]


def block_seed(seed: int, block: Block) -> int:
    """The seed of a block's noise."""
    digest = hashlib.sha256(f"{seed}/".encode() + block.values.tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Fault:
    """What could not be scored, and why."""

    said: str


class Lines:
    """Scores as lines of CSV, or of JSON, on an open file."""

    def __init__(self, out: TextIO, *, as_json: bool, heading: bool = True) -> None:
        self._out, self._as_json = out, as_json
        self._table = csv.writer(out, lineterminator="\n")
        if heading and not as_json:
            self._table.writerow(COLUMNS)
            out.flush()

    def put(self, scores: Sequence[Score]) -> None:
        """Write them, at once: an interruption loses none."""
        for score in scores:
            line = asdict(score)
            if self._as_json:
                finite = {
                    name: None if isinstance(value, float) and not math.isfinite(value) else value
                    for name, value in line.items()
                }
                self._out.write(json.dumps(finite) + "\n")
            else:
                self._table.writerow(line.values())
        self._out.flush()


def scored(path: Path, model: str, seed: int) -> set[Key]:
    """What a table of an earlier run holds; a line that was cut off is removed from it.

    Raises:
        FileError: it holds something else, or scores of another model or seed.
    """
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        path.write_bytes(whole)
    lines = csv.reader(whole.decode().splitlines())
    if not whole:
        return set()
    if tuple(next(lines)) != COLUMNS:
        raise FileError(f"{path} is no table of scores: name another file, or remove it")
    found: set[Key] = set()
    for line in lines:
        of = dict(zip(COLUMNS, line, strict=True))
        if (of["model"], of["seed"]) != (model, str(seed)):
            raise FileError(
                f"{path} holds scores of model {of['model']} with seed {of['seed']}, not of "
                f"{model} with {seed}: name another file, or the same model and seed"
            )
        found.add((of["file"], int(of["row"])))
    return found


def run(scoring: Scoring, names: Iterable[str], done: set[Key]) -> Iterator[list[Score] | Fault]:
    """The scores of what is not done yet, block after block in the order of the files.

    What cannot be read, or is no datum of the model, is a `Fault` in its place; the others are
    scored. At most two blocks for each of the parallel requests are held.

    Raises:
        NoneqError: what would befall the others as well.
    """
    waiting: deque[Fault | tuple[Block, Future[list[Score]]]] = deque()
    with ThreadPoolExecutor(scoring.parallel) as pool:
        try:
            for block in _blocks(names, scoring.model, done):
                if isinstance(block, Fault):
                    waiting.append(block)
                else:
                    waiting.append((block, pool.submit(scoring.score, block)))
                if len(waiting) >= 2 * scoring.parallel:
                    yield _settled(waiting.popleft(), done)
            while waiting:
                yield _settled(waiting.popleft(), done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _blocks(names: Iterable[str], model: Model, done: set[Key]) -> Iterator[Block | Fault]:
    """What there is to score."""
    for path in expand(names):
        try:
            for block in read(path, model):
                if any((block.file, block.start + i) not in done for i in range(len(block.values))):
                    yield block
        except FileError as error:
            yield Fault(str(error))


def _settled(
    one: "Fault | tuple[Block, Future[list[Score]]]", done: set[Key]
) -> list[Score] | Fault:
    """The scores of a block that are new, once they are there."""
    if isinstance(one, Fault):
        return one
    block, answer = one
    try:
        return [score for score in answer.result() if (score.file, score.row) not in done]
    except (UnknownModel, TooLarge):
        raise
    except BadRequest as error:
        if not str(error.problem.get("location", "")).startswith("data"):
            raise  # the settings are at fault, and the next block's are the same
        return Fault(f"{block.file}: {error}")
