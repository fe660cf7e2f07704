"""Reads and writes the tensors of the Open Inference Protocol (v2), as JSON or binary.

A body is a JSON object, and behind it the bytes of the tensors that it names as binary, in their
order (the binary tensor data extension). The header Inference-Header-Content-Length says where the
JSON ends; without it the body is JSON alone.
"""

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import orjson
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from service.codecs.json import to_json
from service.errors import BodyTooLarge, InvalidRequest, MalformedBody

LENGTH: Final = "inference-header-content-length"

#: The protocol's names of numbers, and numpy's of them in little-endian order.
DTYPES: Final = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_NAMES: Final = {np.dtype(code): name for name, code in DTYPES.items()}
_PNG: Final = b"\x89PNG"

Parameters = dict[str, bool | int | float | str]


class TensorIn(BaseModel):
    """An input: a tensor in JSON, or the description of a binary one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    shape: list[int] = Field(max_length=16)
    datatype: Literal[*DTYPES, "BYTES"]  # type: ignore[valid-type]  # from the table above
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class OutputIn(BaseModel):
    """An output that is wanted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str
    parameters: dict[str, Any] = {}


class InferenceIn(BaseModel):
    """The JSON object of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = ""
    parameters: Parameters = {}
    inputs: list[TensorIn] = Field([], max_length=64)
    outputs: list[OutputIn] = Field([], max_length=256)


@dataclass(frozen=True)
class Inference:
    """A request: its JSON object, and its inputs as numbers, or as lists of what BYTES hold."""

    asked: InferenceIn
    inputs: Mapping[str, Tensor | list[Any]]

    def binary(self, name: str) -> bool:
        """Whether this output is wanted as binary."""
        usual = self.asked.parameters.get("binary_data_output", False)
        found = next((one for one in self.asked.outputs if one.name == name), None)
        return bool(usual if found is None else found.parameters.get("binary_data", usual))


def read_inference(raw: bytes, length: str | None, max_json_bytes: int) -> Inference:
    """Read a request's body; `length` is its header Inference-Header-Content-Length.

    Raises:
        BodyTooLarge: its JSON is.
        MalformedBody: it is not JSON, or its parts have not the lengths that it states.
        InvalidRequest: the JSON is no request, or a tensor is not what it says.
    """
    size = len(raw) if length is None else int(length) if length.isdecimal() else -1
    if not 0 <= size <= len(raw):
        raise MalformedBody(
            "The header Inference-Header-Content-Length is not the length of the body's JSON.",
            received=(length or "")[:100],
            expected=f"a number up to {len(raw)}, the length of the body",
        )
    if size > max_json_bytes:
        raise BodyTooLarge(
            f"The request's JSON is larger than {max_json_bytes} bytes.",
            received=f"{size} bytes",
            expected=f"at most {max_json_bytes} bytes",
            fix="Send tensors as binary data.",
        )
    try:
        asked = InferenceIn.model_validate(orjson.loads(raw[:size]))
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"The body is not JSON: {error.msg}.") from None
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise InvalidRequest(f"{place or 'The body'}: {fault['msg']}", location=place) from None
    inputs: dict[str, Tensor | list[Any]] = {}
    rest = memoryview(raw)[size:]
    for one in asked.inputs:
        taken = one.parameters.get("binary_data_size")
        if taken is not None:
            if not (isinstance(taken, int) and 0 <= taken <= len(rest)) or one.data is not None:
                raise MalformedBody(
                    f"{one.name}: `binary_data_size` is not the size of its data, which follow.",
                    received=taken,
                    expected=f"at most the {len(rest)} bytes that are left, and no `data`",
                )
            inputs[one.name], rest = _from_bytes(one, rest[:taken]), rest[taken:]
        else:
            inputs[one.name] = _from_json(one)
    if len(rest):
        raise MalformedBody(f"{len(rest)} bytes follow the last input's data.")
    if len(inputs) < len(asked.inputs):
        raise InvalidRequest("Two inputs have the same name.", location="inputs")
    return Inference(asked, inputs)


def write_inference(
    head: Mapping[str, Any], outputs: Sequence[tuple[str, Tensor, bool]]
) -> tuple[bytes, int | None]:
    """Write a response, and return its body and the length of its JSON if binary data follow.

    Args:
        head: the other fields.
        outputs: name, tensor, and whether it is binary, of each.
    """
    told: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, x, binary in outputs:
        array = np.ascontiguousarray(x.detach().cpu().numpy())
        one: dict[str, Any] = {
            "name": name,
            "datatype": datatype(array),
            "shape": list(array.shape),
        }
        if binary:
            data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            one["parameters"] = {"binary_data_size": len(data)}
            parts.append(data)
        else:
            one["data"] = array.reshape(-1)
        told.append(one)
    text = to_json({**head, "outputs": told})
    return b"".join([text, *parts]), len(text) if parts else None


def datatype(array: NDArray[Any]) -> str:
    """Return the protocol's name of an array's type."""
    return _NAMES[array.dtype.newbyteorder("<")]


def _from_bytes(one: TensorIn, data: memoryview) -> Tensor | list[Any]:
    if one.datatype == "BYTES":
        found = []
        while len(data):
            size = struct.unpack_from("<I", data)[0] if len(data) >= 4 else len(data)
            if size > len(data) - 4:
                raise MalformedBody(f"{one.name}: an element is longer than the data.")
            found.append(_element(one, bytes(data[4 : 4 + size])))
            data = data[4 + size :]
        return _counted(one, found)
    dtype = np.dtype(DTYPES[one.datatype])
    if len(data) != math.prod(one.shape) * dtype.itemsize or min(one.shape, default=0) < 0:
        raise _misshapen(one, f"{len(data)} bytes")
    return _tensor(np.frombuffer(data, dtype).reshape(one.shape))


def _from_json(one: TensorIn) -> Tensor | list[Any]:
    if one.data is None:
        raise InvalidRequest(
            f"{one.name} has no data.", location=one.name, fix="Send `data`, or `binary_data_size`."
        )
    if one.datatype == "BYTES":
        return _counted(one, [_element(one, str(text).encode()) for text in one.data])
    try:
        array = np.array(one.data, DTYPES[one.datatype])  # flat or nested
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidRequest(
            f"{one.name}: its data are not {one.datatype}: {error}.", location=one.name
        ) from None
    if array.size != math.prod(one.shape) or min(one.shape, default=0) < 0:
        raise _misshapen(one, f"{array.size} numbers")
    return _tensor(array.reshape(one.shape))


def _tensor(array: NDArray[Any]) -> Tensor:
    """Convert to a tensor, which has no wide unsigned integers."""
    wide = array.dtype.kind == "u" and array.dtype.itemsize > 1
    return torch.from_numpy(array.astype(np.int64 if wide else array.dtype.newbyteorder("=")))


def _element(one: TensorIn, data: bytes) -> Any:  # noqa: ANN401  (JSON)
    """Read an element of BYTES as JSON requests have it: a PNG, or a row of a table."""
    if data.startswith(_PNG):
        return base64.b64encode(data).decode()
    try:
        text = data.decode()
        return orjson.loads(text) if text[:1] in ("{", "[") else text
    except ValueError:
        raise InvalidRequest(
            f"{one.name}: an element of BYTES is neither a PNG nor text.", location=one.name
        ) from None


def _counted(one: TensorIn, found: list[Any]) -> list[Any]:
    if len(found) != math.prod(one.shape):
        raise _misshapen(one, f"{len(found)} elements")
    return found


def _misshapen(one: TensorIn, came: str) -> InvalidRequest:
    return InvalidRequest(
        f"{one.name}: its data do not have its shape.",
        location=one.name,
        received=came,
        expected=f"{one.datatype} of shape {one.shape}",
    )
