"""Scores any number of data for `noneq loglik`, in bounded memory and resumably.

A score depends only on the model, the example's block, the seed and the settings. A block is a
picture, or 256 rows of a table. Each block has its own seed, the first 63 bits of
sha256("seed/" + its values), so other data or an interruption do not change a line. Each line
records its settings and data: a table can only be continued with the same settings, and data that
have changed since are scored again.
"""

import csv
import hashlib
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TextIO

from noneq import files
from noneq.client import Client
from noneq.errors import BadRequest, FileError, TooLarge, UnknownModel
from noneq.models import Model, ModelFacts
from noneq.reading import Block, read
from noneq.responses import Likelihoods

Key = tuple[str, int]


@dataclass(frozen=True)
class Score:
    """A line of the table; nats except for `bits_per_dim`.

    Attributes:
        file: the file, as named in the command.
        row: the example's index in the file.
        model: the model's name.
        convention: the convention of `bound`.
        seed: the command's seed.
        bound: a lower bound on log p(x_0).
        standard_error: the standard error of `bound`.
        bits_per_dim: lower is likelier.
        relative_to_prior: K - L_null.
        rarer_than: the share of held-out data with a larger bound; NaN if not measured.
        typicality: a p-value, near 0 if the example is unlike held-out data; NaN if not measured.
        settings: the estimate's settings, such as "steps=8 terms=20".
        model_checksum: the first 16 digits of the checksum of the model's artefact.
        data_checksum: the checksum of the example's block.
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
    settings: str
    model_checksum: str
    data_checksum: str


COLUMNS = tuple(field.name for field in fields(Score))
#: The columns that have the same values in all lines of a table.
MADE_BY = ("model", "model_checksum", "convention", "seed", "settings")
_DIGITS = 16  # digits of a checksum to write


@dataclass(frozen=True)
class Scoring:
    """Scores data with one model and one set of settings.

    Attributes:
        client: the service's client.
        model: the model to score with.
        seed: the command's seed.
        settings: further arguments of `Client.loglik`.
        parallel: requests at a time.
    """

    client: Client
    model: ModelFacts
    seed: int
    settings: Mapping[str, Any]
    parallel: int = 8

    @property
    def made_by(self) -> dict[str, str]:
        """Return the values of the columns `MADE_BY`."""
        settings = {n: x for n, x in sorted(self.settings.items()) if n != "convention"}
        return {
            "model": self.model.name,
            "model_checksum": self.model.checksum[:_DIGITS],
            "convention": str(self.settings.get("convention", self.model.default_convention)),
            "seed": str(self.seed),
            "settings": " ".join(f"{name}={value}" for name, value in settings.items()),
        }

    def score(self, block: Block) -> list[Score]:
        """Score a block."""
        found: Likelihoods = self.client.loglik(
            block.values, model=self.model.name, seed=block_seed(self.seed, block), **self.settings
        )
        names, rows = found.rows()
        made = {**self.made_by, "seed": self.seed, "data_checksum": block_checksum(block)}
        columns = [{n: x for n, x in zip(names, row, strict=True) if n in COLUMNS} for row in rows]
        return [
            Score(file=block.file, row=block.start + i, **made, **of)  # type: ignore[arg-type]
            for i, of in enumerate(columns)
        ]


def block_seed(seed: int, block: Block) -> int:
    """Derive the seed of a block's noise."""
    digest = hashlib.sha256(f"{seed}/".encode() + block.values.tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def block_checksum(block: Block) -> str:
    """Hash a block's values, so that the same picture in another format has the same checksum."""
    header = f"{block.values.dtype.str}{block.values.shape}".encode()
    return hashlib.sha256(header + block.values.tobytes()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Failure:
    """Data that could not be scored; the message says which and why."""

    message: str


class Lines:
    """Writes scores as lines of CSV or JSON to an open file."""

    def __init__(self, out: TextIO, *, as_json: bool, heading: bool = True) -> None:
        self._out, self._as_json = out, as_json
        self._table = csv.writer(out, lineterminator="\n")
        if heading and not as_json:
            self._table.writerow(COLUMNS)
            out.flush()

    def put(self, scores: Sequence[Score]) -> None:
        """Write scores at once, so that an interruption loses none."""
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


@dataclass
class Table:
    """A table of scores that later runs continue.

    Attributes:
        path: the table's file.
        done: the block's checksum for each score.
        replaced: how many scores turned out to be of data that have changed.
    """

    path: Path
    done: dict[Key, str] = field(default_factory=dict)
    replaced: int = 0
    _stale: set[tuple[Key, str]] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path, scoring: Scoring) -> "Table":
        """Read the table of an earlier run, if any, and remove a line that was cut off.

        Raises:
            FileError: the file holds something else, or scores of other settings.
        """
        found = cls(path)
        raw = path.read_bytes() if path.exists() else b""
        whole = raw[: raw.rfind(b"\n") + 1]
        lines = csv.reader(whole.decode("utf-8", "replace").splitlines())
        if whole and tuple(next(lines)) != COLUMNS:
            raise FileError(f"{path} is not a table of scores: name another file, or remove it")
        for line in lines:
            if len(line) != len(COLUMNS):
                raise FileError(f"{path}, line {lines.line_num}: it has {len(line)} cells")
            score = dict(zip(COLUMNS, line, strict=True))
            _check_settings(path, score, scoring.made_by)
            key, checksum = (score["file"], int(score["row"])), score["data_checksum"]
            before = found.done.get(key, checksum)
            if before != checksum:  # an interruption kept it from being removed
                found._stale.add((key, before))
            found.done[key] = checksum
        if len(whole) < len(raw):
            path.write_bytes(whole)
        return found

    def has(self, block: Block) -> bool:
        """Whether the table has current scores of the whole block; outdated ones become stale."""
        checksum = block_checksum(block)
        keys = [(block.file, block.start + i) for i in range(len(block.values))]
        for key in keys:
            if self.done.get(key, checksum) != checksum:
                self._stale.add((key, self.done.pop(key)))
                self.replaced += 1
        return all(key in self.done for key in keys)

    @contextmanager
    def writing(self) -> Iterator["Lines"]:
        """Open the file to add lines; at the end, remove stale ones."""
        with self.path.open("a", newline="", encoding="utf-8") as out:
            yield Lines(out, as_json=False, heading=out.tell() == 0)
        if self._stale:
            with self.path.open(newline="", encoding="utf-8") as old:
                lines = [line for line in csv.reader(old) if not self._is_stale(line)]
            files.write_csv(self.path, COLUMNS, lines[1:])

    def _is_stale(self, line: Sequence[str]) -> bool:
        score = dict(zip(COLUMNS, line, strict=True))
        key = score["file"], int(score["row"]) if score["row"].isdecimal() else -1
        return (key, score["data_checksum"]) in self._stale


def _check_settings(path: Path, score: Mapping[str, str], made_by: Mapping[str, str]) -> None:
    """Raise FileError if a score was made with other settings."""
    others = [name for name in MADE_BY if score[name] != made_by[name]]
    if others:
        was, now = (
            ", ".join(f"{name.replace('_', ' ')} {x[name] or 'as by default'}" for name in others)
            for x in (score, made_by)
        )
        raise FileError(
            f"{path} holds scores with {was}, not with {now}: name another file, or use the old "
            "settings"
        )


def run(
    scoring: Scoring, names: Iterable[Path], table: Table | None = None
) -> Iterator[list[Score] | Failure]:
    """Score what a table does not have yet, block by block in the order of the files.

    A file that cannot be read, or does not fit the model, yields a `Failure` in its place. At most
    two blocks per parallel request are in memory.

    Raises:
        NoneqError: an error that would affect all blocks.
    """
    done = {} if table is None else table.done
    waiting: deque[Failure | tuple[Block, Future[list[Score]]]] = deque()
    with ThreadPoolExecutor(scoring.parallel) as pool:
        try:
            for block in _blocks(names, scoring.model, table):
                if isinstance(block, Failure):
                    waiting.append(block)
                else:
                    waiting.append((block, pool.submit(scoring.score, block)))
                if len(waiting) >= 2 * scoring.parallel:
                    yield _result(waiting.popleft(), done)
            while waiting:
                yield _result(waiting.popleft(), done)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _blocks(names: Iterable[Path], model: Model, table: Table | None) -> Iterator[Block | Failure]:
    """Read the blocks to score."""
    for path in names:
        try:
            for block in read(path, model):
                if block.missing is not None:
                    yield Failure(block.missing)
                    continue
                if table is None or not table.has(block):
                    yield block
        except FileError as error:
            yield Failure(str(error))


def _result(
    one: "Failure | tuple[Block, Future[list[Score]]]", done: Mapping[Key, str]
) -> list[Score] | Failure:
    """Wait for a block's scores, and return the new ones."""
    if isinstance(one, Failure):
        return one
    block, future = one
    try:
        return [score for score in future.result() if (score.file, score.row) not in done]
    except (UnknownModel, TooLarge):
        raise
    except BadRequest as error:
        if not str(error.problem.get("location", "")).startswith("data"):
            raise  # the settings are wrong, and the next block has the same
        return Failure(f"{block.file}: {error}")
