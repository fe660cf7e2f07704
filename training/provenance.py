"""Where weights and figures came from: the code's commit, the libraries' versions, the device.

A measurement is kept as a file with all of them:

docs/results/NAME.json     of the page of results
runs/KIND/...json          of a command by itself
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
    """The code's commit, "-dirty" where what trains has changes; None outside git."""
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
    """Python's and the libraries' versions."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        found[library] = metadata.version(library)
    return found


def device_name(device: torch.device) -> str:
    """A device in words."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {torch.get_num_threads()} threads"


class RecordError(ValueError):
    """A file that holds no record; the message names the file and the fix."""


class Record(BaseModel):
    """What was found, and how.

    Attributes:
        command: that measures it again.
        machine: that measured, as a card says it; None where that was not written down.
        seconds: it took, wall time; of a measurement that went on, of its last part alone.
        commit: of the code.
        versions: of the libraries.
        found: what was measured, as its command says it in JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    machine: str | None = None
    seconds: float | None = None
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    found: Any


def measure(command: str, device: torch.device, make: Callable[[], Any]) -> Record:
    """Make a measurement, and note how it was made."""
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
    """Write a record, whole or not at all, and say where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record.model_dump(mode="json"), indent=2) + "\n")
    partial.replace(path)
    print(f"written: {path}", file=sys.stderr)


def read(path: Path) -> Record | None:
    """The record of a file; None where there is no file.

    Raises:
        RecordError: a file that holds something else.
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
