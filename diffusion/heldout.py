"""Held-out example data stored beside a model's artefact: models/NAME/examples.safetensors.

The file holds one tensor `data` [N, *shape] in data units, N <= MOST, as bytes if they can hold
every value and float32 otherwise. The model was not trained on any of it.
"""

import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffusion.artefact import ArtefactError
from diffusion.space import Space

FILE = "examples.safetensors"
MOST = 32
_BYTES = 100_000  # the most bytes in the file, unless one example alone is larger
_KEY = "data"


def choose(rows: Tensor, space: Space) -> Tensor:
    """Choose examples spread evenly over a held-out split [N, *shape], which may be sorted."""
    size = math.prod(space.shape) * _dtype(space).itemsize
    count = min(MOST, max(1, _BYTES // size), len(rows))
    return rows[:: max(1, len(rows) // count)][:count]


def write(folder: Path, data: Tensor, space: Space) -> Path:
    """Write examples beside an artefact and return the path.

    Args:
        folder: the artefact's folder.
        data: [N, *shape], data units.
        space: the space of an example.

    Raises:
        ValueError: the data do not belong to the space, or are more than MOST.
    """
    space.check(data.to(space.dtype))
    if len(data) > MOST:
        raise ValueError(f"at most {MOST} examples, came {len(data)}: leave some out")
    path = folder / FILE
    save_file({_KEY: data.to(_dtype(space)).contiguous()}, path)
    path.chmod(0o644)  # save_file makes it readable only by its owner; the server may be another
    return path


def read(folder: Path, space: Space) -> Tensor:
    """Read the examples beside an artefact, [N, *shape], data units; N = 0 if it has no such file.

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


def _dtype(space: Space) -> torch.dtype:
    small = space.greatest is not None and space.greatest < 256
    return torch.uint8 if small else space.dtype
