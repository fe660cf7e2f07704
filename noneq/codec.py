"""Encodes and decodes bodies: safetensors both ways, and JSON from a stream's result.

A safetensors file holds the arrays, and every other field as one JSON object in its metadata, under
"request" in requests and "answer" in responses. Nothing is ever unpickled.
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
Document = Mapping[str, Any]

#: The summands of a likelihood's bound.
PARTS = ("prior", "steps", "last", "gain")


@dataclass(frozen=True, eq=False)
class Body:
    """The content of a request or a response: plain fields, and arrays by name."""

    fields: Document
    tensors: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """The request id and timings in the headers of a response.

    Attributes:
        request_id: identifies the request in the operator's log.
        queue_seconds: the wait until the first network call.
        compute_seconds: the time from then to the answer.
    """

    request_id: str = ""
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0


def encode(body: Body, key: str = "request") -> tuple[bytes, str]:
    """Encode a body as safetensors if it has arrays, else as JSON; return its bytes and type."""
    text = json.dumps(dict(body.fields), allow_nan=False, default=_to_json)
    if not body.tensors:
        return text.encode(), JSON
    tensors = {name: np.ascontiguousarray(x) for name, x in body.tensors.items()}
    return safetensors.numpy.save(tensors, metadata={key: text}), BINARY


def _to_json(value: object) -> object:
    """Convert numpy's arrays and numbers, such as a kernel, a matrix or a label, for JSON."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a request holds numbers, strings, lists and arrays, received {value!r}")


def decode(raw: bytes, key: str = "answer") -> Body:
    """Decode a safetensors file.

    Raises:
        UnreadableAnswer: the bytes are not a safetensors file from noneq.
    """
    try:
        tensors = safetensors.numpy.load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        fields = json.loads(header["__metadata__"][key])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UnreadableAnswer(
            f"received no safetensors file with an {key!r} in its metadata ({error!r}): is there "
            "a noneq service at that address, and no proxy that rewrites its answers?"
        ) from error
    return Body(fields, tensors)


def packed(data: Data) -> Array:
    """Convert values for sending: to bytes if they are integers that fit, else to float32.

    float64 is kept if float32 would round away the differences between the values: data far from 0
    compared with their spread.

    Raises:
        ValueError: the data are ragged, or not numbers.
    """
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ValueError(
            f"data are arrays of one shape, and these differ ({error}): crop or reshape them"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"data are numbers, received {array.dtype}: read files first, with "
            "noneq.read(names, model)"
        )
    if array.dtype.kind in "biu" and array.size and array.min() >= 0 and array.max() <= 255:
        return array.astype(np.uint8)
    with np.errstate(over="ignore"):  # becomes infinite, which the service refuses with its place
        rounded = array.astype(np.float32)
    return array if array.dtype == np.float64 and _too_coarse(rounded, array) else rounded


def _too_coarse(rounded: Array, array: Array) -> bool:
    """Whether float32 moves values by more than 1e-5 of their column's spread."""
    rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    with np.errstate(invalid="ignore", over="ignore"):
        moved = np.abs(rounded.reshape(rows.shape) - rows)
        spread = rows.std(0) if len(rows) > 1 else np.zeros(rows.shape[1])
        return bool((moved > 1e-5 * spread).any()) and bool(np.isfinite(rounded).all())


# ----------------------------------------- JSON answers, with the arrays of the safetensors answers


def samples_from_json(document: Document) -> Body:
    """Convert a JSON answer to the body of a `Samples`."""
    tensors = {"samples": _values(document["samples"], document)}
    if document.get("trajectory") is not None:
        states = document["trajectory"]
        tensors |= {f"trajectory_{name}": _float32(states[name]) for name in ("x", "x_0")}
        tensors["trajectory_t"] = np.array(states["t"])
    return Body({n: x for n, x in document.items() if n not in ("samples", "trajectory")}, tensors)


def posterior_from_json(document: Document) -> Body:
    """Convert a JSON answer to the body of a `Posterior`."""
    names = ("samples", "mean", "std", "quantiles")
    results = document["results"]
    found = {n: [one.get(n) for one in results] for n in names}
    tensors = {n: _values(x, document) for n, x in found.items() if None not in x}
    rest = [{n: v for n, v in one.items() if n not in names} for one in results]
    return Body({**document, "results": rest}, tensors)


def likelihoods_from_json(document: Document) -> Body:
    """Convert a JSON answer, whose null is -inf or NaN, to the body of a `Likelihoods`."""
    results = document["results"]
    tensors = {
        name: _column([one[name] for one in results], -np.inf)
        for name in ("bound", "relative_to_prior")
    }
    tensors["standard_error"] = _column([one["standard_error"] for one in results], np.nan)
    for name in ("rarer_than", "typicality", "degrees_of_freedom"):
        found = [one.get(name) for one in results]
        if set(found) != {None}:
            tensors[name] = _column(found, np.nan)
    ends = [one.get("interval") or (None, None) for one in results]
    if "degrees_of_freedom" in tensors:
        tensors["interval"] = np.array([_column(pair, np.nan) for pair in ends])
    bands = [one.get("bands") for one in results]
    if bands and None not in bands:
        tensors["band_t"] = np.array([[band["first"], band["final"]] for band in bands[0]])
        for name in ("nats", "rarer_than"):
            rows = [_column([band[name] for band in one], np.nan) for one in bands]
            tensors[f"band_{name}"] = np.array(rows)
    if results and "elements" in results[0]:  # not from an older service
        tensors["elements"] = np.array([one["elements"] for one in results])
    columns = [one.get("columns") for one in results]
    if columns and None not in columns:
        for name in ("nats", "rarer_than"):
            rows = [_column([column[name] for column in one], np.nan) for one in columns]
            tensors[f"column_{name}"] = np.array(rows)
    for name in PARTS:
        tensors[name] = _column([one["parts"][name] for one in results], -np.inf)
    terms = [one["per_step"] for one in results]
    if terms and None not in terms:
        tensors["term_t"] = np.array([[term["t"] for term in one] for one in terms])
        tensors["term_weight"] = np.array([term["weight"] for term in terms[0]])
        values = [_column([term["value"] for term in one], np.inf) for one in terms]
        tensors["term_value"] = np.array(values)
    return Body({n: x for n, x in document.items() if n != "results"}, tensors)


def _values(value: Any, document: Document) -> Array:  # noqa: ANN401  (nested lists)
    """Convert lists of numbers; or of a table's rows, objects by name, to float64 [..., J]."""
    columns = document.get("table")
    if columns is None:
        return _float32(value)
    if isinstance(value, list):
        return np.array([_values(one, document) for one in value])
    places = [{label: i for i, label in enumerate(one["labels"] or ())} for one in columns]
    cells = [value.get(one["name"]) for one in columns]
    each = [labels.get(cell, cell) for labels, cell in zip(places, cells, strict=True)]
    return np.array([np.nan if cell is None else cell for cell in each], np.float64)


def _float32(value: object) -> Array:
    return np.asarray(value, np.float32)


def _column(values: Sequence[float | None], absent: float) -> Array:
    return np.array([absent if value is None else value for value in values], np.float64)
