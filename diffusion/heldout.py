"""Held-out data beside an artefact, to try things on: models/NAME/examples.safetensors.

One tensor `data` [N, *shape] in data units, N at most MOST: bytes where they hold every value,
float32 elsewhere; no row of it was fitted to.
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.artefact import ArtefactError
from diffusion.space import DataSpace

FILE = "examples.safetensors"
MOST = 32
_BYTES = 100_000  # of the file; more than one example only where they fit
_KEY = "data"


def choose(rows: Tensor, space: DataSpace) -> Tensor:
    """Some of a held-out split [N, *shape], from all over it: some sets are in order of label."""
    size = math.prod(space.shape) * _dtype(space).itemsize
    count = min(MOST, max(1, _BYTES // size), len(rows))
    return rows[:: max(1, len(rows) // count)][:count]


def write(folder: Path, data: Tensor, space: DataSpace) -> Path:
    """Write them beside an artefact; returns the path.

    Args:
        folder: of the artefact.
        data: [N, *shape], data units.
        space: what an example is.

    Raises:
        ValueError: they are no data of that space, or more than MOST.
    """
    space.check(data.to(space.dtype))
    if len(data) > MOST:
        raise ValueError(f"at most {MOST} examples, came {len(data)}: leave some out")
    path = folder / FILE
    save_file({_KEY: data.to(_dtype(space)).contiguous()}, path)
    path.chmod(0o644)  # the server may be another user; save_file writes for the owner alone
    return path


def read(folder: Path, space: DataSpace) -> Tensor:
    """The data beside an artefact, [N, *shape], data units; none where it has no such file.

    Raises:
        ArtefactError: the file holds something else.
    """
    path = folder / FILE
    if not path.exists():
        return torch.zeros(0, *space.shape, dtype=space.dtype)
    try:
        data = load_file(path)[_KEY].to(space.dtype)
        space.check(data)
        if not 1 <= len(data) <= MOST:
            raise ValueError(f"1 to {MOST} examples, came {len(data)}")
    except (KeyError, SafetensorError, ValueError) as error:
        fix = "write them anew with `python -m training heldout`"
        raise ArtefactError(f"{path}: it holds no examples of its model: {error}: {fix}") from error
    return data


def _dtype(space: DataSpace) -> torch.dtype:
    small = space.greatest is not None and space.greatest < 256
    return torch.uint8 if small else space.dtype
