"""Scores of any number of data, in bounded memory and resumable: `noneq loglik`.

A score depends only on the model, the example's block, the seed and the settings. Each block has a
seed of its own, the first 63 bits of sha256("seed/" + its values), so other data, or an
interruption, change no line. A picture is a block, and so are 256 rows of a table. Each line says
how and from what it was made: a table can only be continued with the same settings, and what has
changed since is scored again.
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
        file: as it was named.
        row: the example's index in it.
        model: its name.
        convention: what `bound` is the probability of.
        seed: of the command.
        bound: on log p(x_0), from below.
        standard_error: of this estimate.
        bits_per_dim: lower is likelier.
        relative_to_prior: K - L_null.
        rarer_than: the share of held-out data with a larger bound; NaN if not measured.
        typicality: a p-value, near 0 if the example is unlike held-out ones; NaN likewise.
        settings: of the estimate, as "steps=8 terms=20".
        model_checksum: of the model's artefact, the first 16 digits.
        data_checksum: of the block that the example was scored in.
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
#: The columns in which all scores of a table agree.
MADE_BY = ("model", "model_checksum", "convention", "seed", "settings")
_DIGITS = 16  # of a checksum that are written


@dataclass(frozen=True)
class Scoring:
    """How data are scored.

    Attributes:
        client: of the service.
        model: that scores.
        seed: of the command.
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
        """The values of these columns."""
        settings = {n: x for n, x in sorted(self.settings.items()) if n != "convention"}
        return {
            "model": self.model.name,
            "model_checksum": self.model.checksum[:_DIGITS],
            "convention": str(self.settings.get("convention", self.model.default_convention)),
            "seed": str(self.seed),
            "settings": " ".join(f"{name}={value}" for name, value in settings.items()),
        }

    def score(self, block: Block) -> list[Score]:
        """The scores of a block."""
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
    """The seed of a block's noise."""
    digest = hashlib.sha256(f"{seed}/".encode() + block.values.tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def block_checksum(block: Block) -> str:
    """Of the values, not of the file: the same picture in another format has the same one."""
    header = f"{block.values.dtype.str}{block.values.shape}".encode()
    return hashlib.sha256(header + block.values.tobytes()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Failure:
    """Data that could not be scored; the message says which and why."""

    message: str


class Lines:
    """Scores as lines of CSV, or of JSON, on an open file."""

    def __init__(self, out: TextIO, *, as_json: bool, heading: bool = True) -> None:
        self._out, self._as_json = out, as_json
        self._table = csv.writer(out, lineterminator="\n")
        if heading and not as_json:
            self._table.writerow(COLUMNS)
            out.flush()

    def put(self, scores: Sequence[Score]) -> None:
        """Write them at once, so that an interruption loses none."""
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
    """A table of scores that is continued.

    Attributes:
        path: its file.
        done: for each score of it, the checksum of the block that it was scored in.
        replaced: how many of them turned out to be of data that have changed.
    """

    path: Path
    done: dict[Key, str] = field(default_factory=dict)
    replaced: int = 0
    _stale: set[tuple[Key, str]] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path, scoring: Scoring) -> "Table":
        """The table of an earlier run, if any; a line that was cut off is removed from it.

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
        """Whether it has scores of the whole block as it is now; older ones of it become stale."""
        checksum = block_checksum(block)
        keys = [(block.file, block.start + i) for i in range(len(block.values))]
        for key in keys:
            if self.done.get(key, checksum) != checksum:
                self._stale.add((key, self.done.pop(key)))
                self.replaced += 1
        return all(key in self.done for key in keys)

    @contextmanager
    def writing(self) -> Iterator["Lines"]:
        """The open file, to add lines to; at the end, stale ones are removed."""
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
    """The scores that a table does not have, block by block in the order of the files.

    A file that cannot be read, or does not fit the model, is a `Failure` in its place; the others
    are scored. At most two blocks for each of the parallel requests are in memory.

    Raises:
        NoneqError: an error that would happen to the others as well.
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
    """The blocks to score."""
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
    """The new scores of a block, once they have been computed."""
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
