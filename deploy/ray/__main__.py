"""python -m deploy.ray score|impute|repair DATA... OUT --model NAME: data sets in batches."""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from pydantic import ValidationError

from deploy.ray import batch
from deploy.ray.tasks import Impute, Repair, Score, Task
from noneq.errors import NoneqError

TASKS: dict[str, type[Task]] = {"score": Score, "impute": Impute, "repair": Repair}


def parser() -> argparse.ArgumentParser:
    """The command's arguments; a task's options are its fields."""
    found = argparse.ArgumentParser(
        prog="python -m deploy.ray",
        description=batch.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = found.add_subparsers(dest="task", required=True)
    for name, task in TASKS.items():
        about = (task.__doc__ or "").strip()
        one = tasks.add_parser(name, help=about, description=about)
        one.add_argument(
            "data",
            nargs="+",
            type=Path,
            help="files (.parquet, .csv), or folders of these or of pictures",
        )
        one.add_argument("out", type=Path, help="folder of the output, which may be continued")
        for field, facts in task.model_fields.items():
            one.add_argument(
                f"--{field}",
                required=facts.is_required(),
                help=facts.description,
                default=None if facts.is_required() else facts.default,
            )
        one.add_argument("--models", type=Path, default=Path("models"), help="folder of models")
        one.add_argument("--rows", type=int, default=batch.ROWS, help="rows of a block")
        one.add_argument("--workers", type=int, default=1, help="engines at once")
        one.add_argument("--cpus", type=float, default=1.0, help="cores of an engine")
        one.add_argument("--gpus", type=float, default=0.0, help="GPUs of an engine")
        one.add_argument("--address", help="of a Ray cluster; without it Ray is started here")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    given = parser().parse_args(arguments)
    kind = TASKS[given.task]
    options: dict[str, Any] = {name: getattr(given, name) for name in kind.model_fields}
    try:
        _run(kind.model_validate(options), given)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            place = ".".join(map(str, fault["loc"]))
            print(f"--{place}: {fault['msg']}, came {fault['input']!r}", file=sys.stderr)
        return 2
    except NoneqError as error:
        print(error, file=sys.stderr)
        return 2
    except ray.exceptions.RayTaskError as error:
        print(f"\n{error.cause or error}", file=sys.stderr)
        return 1
    return 0


def _run(task: Task, given: argparse.Namespace) -> None:
    """Do the task, and say how far it is."""
    if not ray.is_initialized():
        here: dict[str, Any] = {"num_cpus": max(1, int(given.workers * given.cpus) + 1)}
        here |= {"include_dashboard": False}
        cluster = {"address": given.address} if given.address else here
        ray.init(**cluster, log_to_driver=False, logging_level="warning")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    workers = batch.Workers(given.workers, given.cpus, given.gpus)
    begun, first = time.monotonic(), -1
    for done, whole in batch.run(task, given.data, given.out, given.models, workers, given.rows):
        first = done if first < 0 else first
        rate = (done - first) / max(1e-9, time.monotonic() - begun)
        line = f"\r{done} of {whole} rows, {rate:.1f} rows/s"
        print(line, end="", file=sys.stderr, flush=True)
    print(f"\n{given.out}: {whole} rows", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
