"""Scores, imputes or repairs a data set that is larger than memory, with Ray Data.

    python -m deploy.ray impute measurements.parquet filled --model weather --workers 8

Every worker has an engine of its own, on so many cores or a GPU. Each block of the data set becomes
a file `part-NNNNNN.parquet` of the output, one row for each row, numbered by `row`; a part appears
whole or not at all. So a run that was interrupted goes on: parts that are there are not done again.
`task.json` records what was asked, and a folder is only continued with the same.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pyarrow.parquet as pq
import ray
import ray.data

from deploy.ray.blocks import Block, plan
from deploy.ray.tasks import Engine, Task
from noneq.errors import FileError

ROWS = 2048  # of a block


@dataclass(frozen=True)
class Workers:
    """Who does the work.

    Attributes:
        count: how many at once.
        cpus: cores of each, and threads of its network.
        gpus: GPUs of each.
    """

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0


@final
class Worker:
    """An actor of Ray Data: does blocks, one after the other, and writes their parts."""

    def __init__(self, task: Task, models: str, out: str, values: dict[str, Any]) -> None:
        self._task, self._out = task, Path(out)
        self._engine = Engine(models, task.model, values)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do one block; what is returned is for the progress."""
        block, begun = Block.from_json(row["block"]), time.monotonic()
        table = self._engine.run(self._task, block)
        path = part(self._out, block)
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        pq.write_table(table, beside)
        beside.replace(path)
        return {"rows": block.count, "seconds": time.monotonic() - begun}


def part(out: Path, block: Block) -> Path:
    """The file of a block in the output."""
    return out / f"part-{block.number:06}.parquet"


def run(
    task: Task,
    paths: Sequence[Path],
    out: Path,
    models: Path,
    workers: Workers = Workers(),
    rows: int = ROWS,
    values: dict[str, Any] | None = None,
) -> Iterator[tuple[int, int]]:
    """Do what is not done yet; yield the rows done and in all, first those done before.

    Args:
        task: what to do.
        paths: files and folders of the data set; workers read them by the same names.
        out: folder of the output.
        models: the folder of models.
        workers: who does it.
        rows: of a block.
        values: settings of the engines, by name.

    Raises:
        FileError: the data cannot be read, or the folder holds the output of something else.
    """
    artefact = models / task.model / "model.safetensors"
    if not artefact.is_file():
        raise FileError(f"{artefact}: there is no such model; --models names the folder of models")
    blocks = list(plan([path.resolve() for path in paths], rows))
    out.mkdir(parents=True, exist_ok=True)
    _continue(out / "task.json", _asked(task, blocks, artefact, rows))
    left = [block for block in blocks if not part(out, block).exists()]
    whole = sum(block.count for block in blocks)
    done = whole - sum(block.count for block in left)
    yield done, whole
    if not left:
        return
    given = {"threads": max(1, int(workers.cpus)), **(values or {})}
    places = str(models.resolve()), str(out.resolve())
    items = [{"block": block.to_json()} for block in left]
    found = ray.data.from_items(items, override_num_blocks=min(len(items), 1000)).map(
        Worker,
        fn_constructor_args=(task, *places, given),
        compute=ray.data.ActorPoolStrategy(size=min(workers.count, len(left))),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
    )
    for told in found.iter_rows():
        done += told["rows"]
        yield done, whole


def _asked(task: Task, blocks: Sequence[Block], artefact: Path, rows: int) -> dict[str, Any]:
    """What a run is: the task, the model and the data."""
    with artefact.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    files = sorted({name for block in blocks for name in block.files()})
    sizes = hashlib.sha256()
    for name in files:
        sizes.update(f"{name} {Path(name).stat().st_size}\n".encode())
    return {
        "task": type(task).__name__.lower(),
        **task.model_dump(),
        "model_checksum": checksum,
        "rows_of_a_block": rows,
        "blocks": len(blocks),
        "files": len(files),
        "names_and_sizes": sizes.hexdigest(),
    }


def _continue(path: Path, asked: dict[str, Any]) -> None:
    """Record what is asked, or check that it is what was recorded."""
    if not path.exists():
        path.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    other = sorted(name for name in asked if asked[name] != before.get(name))
    if other:
        was = ", ".join(f"{name} {before.get(name)} (now {asked[name]})" for name in other)
        raise FileError(f"{path.parent} is the output of another run: {was}; name another folder")
