"""Read and write a fit's checkpoint: one .safetensors file with all the next step depends on.

Tensors: `network.*` (weights and buffers), `average.*` (their average), `best.*` (the average with
the greatest held-out bound, if the fit stops early), `optimiser.FIELD.*`, and the t sampler's. The
header's metadata holds a JSON document: step, seconds, configuration, checksum of the data. The
file is replaced atomically, so it is complete even if the process is killed. `state.json` beside it
repeats the document for people to read.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion.process import MEASURED
from training.fit.weights import Looks

FORMAT = 1
KEY = "noneq-fit"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the fix."""


class State(BaseModel):
    """The checkpoint's JSON document; `step` optimiser steps took `seconds` of work."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    step: int
    seconds: float
    checksum: str
    device: str
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    config: dict[str, Any]
    best: Looks | None = None


def checkpoint_path(out: Path) -> Path:
    """Path of a run folder's checkpoint."""
    return out / "checkpoint.safetensors"


def save(out: Path, state: State, tensors: dict[str, Tensor]) -> None:
    """Write a run folder's checkpoint atomically, so that it also survives a power cut."""
    out.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(out)
    partial = path.with_name(path.name + ".partial")
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, partial, {KEY: state.model_dump_json()})
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(path)
    (out / "state.json").write_text(json.dumps(state.model_dump(), indent=2) + "\n")


def read_state(out: Path) -> State:
    """Read the JSON document of a run folder's checkpoint.

    Raises:
        CheckpointError: it is missing, or not in this version's format.
    """
    path = checkpoint_path(out)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; run `python -m training fit` first")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}); delete it or start with --restart"
        ) from error
    if KEY not in metadata:
        raise CheckpointError(f"{path} is not a fit's checkpoint: its metadata has no key {KEY!r}")
    document = json.loads(metadata[KEY])
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {document.get('format')}, this version reads {FORMAT}; "
            "start with --restart"
        )
    return State.model_validate(document)


def read_tensors(out: Path) -> dict[str, Tensor]:
    """Read the tensors of a run folder's checkpoint."""
    with safe_open(checkpoint_path(out), framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names start with `prefix.`, and strip it."""
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Prefix the tensors' names; the inverse of `under`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, names: dict[Tensor, str]
) -> dict[str, Tensor]:
    """The optimiser's state as tensors named FIELD.PARAMETER."""
    return {
        f"{field}.{names[parameter]}": value
        for parameter, fields in optimiser.state.items()
        for field, value in fields.items()
    }


def load_optimiser(
    optimiser: torch.optim.Optimizer,
    names: dict[Tensor, str],
    tensors: dict[str, Tensor],
) -> None:
    """Restore the optimiser's state; `step` counters stay on the device it expects."""
    fields = sorted({name.split(".", 1)[0] for name in tensors})
    order = list(names)
    state = {
        index: {field: tensors[f"{field}.{names[parameter]}"] for field in fields}
        for index, parameter in enumerate(order)
        if fields
    }
    document = optimiser.state_dict()
    optimiser.load_state_dict({"state": state, "param_groups": document["param_groups"]})


def check_same(was: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """Raise CheckpointError if a checkpoint's configuration would lead to other weights.

    `steps` may differ: a fit may be extended past its end.
    """
    was, now = _deciding(was), _deciding(now)
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if changed:
        what = "; ".join(f"{key}: {was.get(key)} there, {now.get(key)} here" for key in changed)
        raise CheckpointError(
            f"{out} holds a fit with another configuration ({what}); start with --restart or "
            "another --out"
        )


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that affect the weights; an optimal variance is fitted as "lower"."""
    free = {"file", "title", "steps", "stopping", "watch", "evaluation", "profile"}
    fitted = "lower" if config.get("variance") in MEASURED else config.get("variance")
    return {key: value for key, value in config.items() if key not in free} | {"variance": fitted}


def averaged_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged network's state in a checkpoint: the best one, if that was kept."""
    return under("best", tensors) or under("average", tensors)
