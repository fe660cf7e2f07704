"""Bodies: safetensors both ways, JSON where a stream ends in it.

A safetensors file holds the tensors, and every other field as one JSON object in its metadata,
under "request" on the way out and "answer" on the way in. Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError

from noneq.errors import UnreadableAnswer

BINARY = "application/octet-stream"
JSON = "application/json"
EVENTS = "text/event-stream"

Array = NDArray[Any]
Data = ArrayLike | Sequence[ArrayLike]


@dataclass(frozen=True, eq=False)
class Body:
    """What a request or an answer holds: plain fields, and arrays by name."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, Array] = field(default_factory=dict)


def encode(body: Body, key: str = "request") -> tuple[bytes, str]:
    """The bytes and their content type: safetensors where there are arrays, else JSON."""
    text = json.dumps(dict(body.fields), allow_nan=False, default=_listed)
    if not body.tensors:
        return text.encode(), JSON
    tensors = {name: np.ascontiguousarray(x) for name, x in body.tensors.items()}
    return safetensors.numpy.save(tensors, metadata={key: text}), BINARY


def _listed(value: object) -> object:
    """Numpy's own as JSON has it: a kernel, a matrix, a label may be of them."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a request holds numbers, strings, lists and arrays, came {value!r}")


def decode(raw: bytes, key: str = "answer") -> Body:
    """What a safetensors file holds.

    Raises:
        UnreadableAnswer: it is none, or one of somebody else's.
    """
    try:
        tensors = safetensors.numpy.load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        fields = json.loads(header["__metadata__"][key])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnreadableAnswer(
            f"what came is no safetensors file with an {key!r} in its metadata ({error!r}): is "
            "there a noneq service at that address, and nothing that rewrites its answers?"
        ) from error
    return Body(fields, tensors)


def packed(data: Data) -> Array:
    """Values as they are sent: bytes where they are whole and fit, else float32.

    float64 stays where float32 would round what tells the values apart: data far from 0 beside
    their spread.

    Raises:
        ValueError: ragged, or no numbers.
    """
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(
            f"data are arrays of one shape, and these differ ({error}): crop or reshape them"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"data are numbers, came {array.dtype}: read files first, with noneq.read(names, model)"
        )
    if array.dtype.kind in "biu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    with np.errstate(over="ignore"):  # becomes infinite, which the service refuses with its place
        rounded = array.astype(np.float32)
    return array if array.dtype == np.float64 and _coarse(rounded, array) else rounded


def _coarse(rounded: Array, array: Array) -> bool:
    """Whether float32 moves values by more than 1e-5 of their column's spread."""
    rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        moved = np.abs(rounded.reshape(rows.shape) - rows)
        spread = rows.std(0) if len(rows) > 1 else np.zeros(rows.shape[1])
        return bool((moved > 1e-5 * spread).any()) and bool(np.isfinite(rounded).all())
