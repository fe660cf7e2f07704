"""The checkpoint of a fit: one .safetensors file, everything that the next step depends on.

Tensors: `network.*` (weights and buffers), `average.*` (the same, averaged), `best.*` (the average
    of the greatest held-out bound, where a fit stops by that), `optimiser.FIELD.*`,
    and those of the t sampler. The header's metadata holds a JSON document: step, seconds,
    configuration, checksum of the data. One file, replaced as a whole, so a kill at any moment
    leaves a whole one. `state.json` beside it repeats the document for people to read.
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

from training.fit.weights import Looks

FORMAT = 1
KEY = "noneq-fit"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the fix."""


class State(BaseModel):
    """The document: `step` optimiser steps done in `seconds` of work."""

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
    """Where the checkpoint of a run folder is."""
    return out / "checkpoint.safetensors"


def save(out: Path, state: State, tensors: dict[str, Tensor]) -> None:
    """Write the checkpoint of a run folder, whole or not at all, and safe against a power cut."""
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
    """The document of a run folder's checkpoint.

    Raises:
        CheckpointError: none there, or none that this version wrote.
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
        raise CheckpointError(f"{path} is no checkpoint of a fit: its metadata has no key {KEY!r}")
    document = json.loads(metadata[KEY])
    if document.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {document.get('format')}, this version reads {FORMAT}; "
            "start with --restart"
        )
    return State.model_validate(document)


def read_tensors(out: Path) -> dict[str, Tensor]:
    """The tensors of a run folder's checkpoint."""
    with safe_open(checkpoint_path(out), framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix.`, without it."""
    start = prefix + "."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `under`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def optimiser_tensors(
    optimiser: torch.optim.Optimizer, names: dict[Tensor, str]
) -> dict[str, Tensor]:
    """The optimiser's state as tensors, FIELD.NAME of the parameter."""
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
    """Put the state back; `step` counters stay where the optimiser wants them."""
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
    """Raise CheckpointError if a checkpoint's configuration decides other weights than this one.

    More or fewer `steps` are no other configuration: a fit may be extended past its end.
    """
    was, now = _deciding(was), _deciding(now)
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if changed:
        what = "; ".join(f"{key}: {was.get(key)} there, {now.get(key)} here" for key in changed)
        raise CheckpointError(
            f"{out} holds a fit of another configuration ({what}); start with --restart or "
            "another --out"
        )


def _deciding(config: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration decides the weights; an optimal variance is fitted as "lower" is."""
    free = {"file", "title", "steps", "stopping", "watch", "evaluation", "profile"}
    fitted = {"optimal": "lower"}.get(config.get("variance") or "", config.get("variance"))
    return {key: value for key, value in config.items() if key not in free} | {"variance": fitted}


def averaged_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged network's state in a checkpoint's tensors: the best where that was kept."""
    return under("best", tensors) or under("average", tensors)
