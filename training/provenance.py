"""Record where weights and figures came from: commit, library versions and device.

Each measurement is a file that holds all of them:

docs/results/NAME.json     for the page of results
runs/KIND/...json          for a single command
"""

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

LIBRARIES = ("torch", "numpy", "safetensors", "pydantic")


def commit() -> str | None:
    """The code's commit, with "-dirty" if the packages have changes; None outside git."""
    folder = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if head is None:
        return None
    return head + ("-dirty" if git("status", "--porcelain", "diffusion", "training") else "")


def versions() -> dict[str, str]:
    """The versions of Python and the libraries."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        found[library] = metadata.version(library)
    return found


def device_name(device: torch.device) -> str:
    """Describe a device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {torch.get_num_threads()} threads"


class RecordError(ValueError):
    """Raised for a file that holds no record; the message names the file and the fix."""


class Record(BaseModel):
    """A measurement and how it was made.

    Attributes:
        command: the command that repeats it.
        machine: the device in words; None if it was not recorded.
        seconds: wall time; for a resumed measurement, only its last part.
        commit: of the code.
        versions: of the libraries.
        found: the result, as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    machine: str | None = None
    seconds: float | None = None
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    found: Any


def measure(command: str, device: torch.device, make: Callable[[], Any]) -> Record:
    """Make a measurement and record how it was made."""
    began = time.monotonic()
    found = make()
    return Record(
        command=command,
        machine=device_name(device),
        seconds=round(time.monotonic() - began, 1),
        commit=commit(),
        versions=versions(),
        found=found,
    )


def write(path: Path, record: Record) -> None:
    """Write a record atomically and print its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record.model_dump(mode="json"), indent=2) + "\n")
    partial.replace(path)
    print(f"written: {path}", file=sys.stderr)


def read(path: Path) -> Record | None:
    """Read the record in a file; None if there is no file.

    Raises:
        RecordError: the file holds something else.
    """
    if not path.exists():
        return None
    try:
        return Record.model_validate_json(path.read_text())
    except ValidationError as error:
        raise RecordError(
            f"{path} holds no record of a measurement ({error.errors()[0]['msg']}); delete it and "
            "measure again"
        ) from error
