"""Reads and writes bodies as JSON or safetensors, and negotiates content types and codings.

A binary body is a safetensors file with tensors, and all other fields as one JSON object in its
metadata, under "request" in requests and "answer" in answers. Nothing is ever unpickled.
"""

import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, final

import numpy as np
import orjson
import safetensors.torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from diffusion.space import Space
from service.codecs.rows import CSV, decode_csv, objects
from service.errors import (
    BodyTooLarge,
    InvalidRequest,
    MalformedBody,
    NotAcceptable,
    UnsupportedMediaType,
)

JSON = "application/json"
PNG = "image/png"
BINARY = "application/octet-stream"
EVENTS = "text/event-stream"

REQUEST_KEY = "request"
ANSWER_KEY = "answer"
TENSORS = ("data", "observed", "known", "noise_std")

_OBJECTS = 1000  # written at once
_NUMBERS = 10_000  # likewise, or one row of an array
_LEVELS = 3  # levels of an answer written in pieces: its fields, the results, their fields

#: Content codings of requests (RFC 9110, 8.4.1), and zlib's `wbits` for them.
CODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_PIECE = 2**16

_BINARY_FORM = (
    "a safetensors file with tensors named data, observed, known or noise_std, and the other "
    f'fields as one JSON object in its metadata under the key "{REQUEST_KEY}"'
)


@dataclass(frozen=True)
class Body:
    """An unchecked request: its fields, and the tensors of a binary body."""

    fields: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


def negotiate(accept: str | None, offers: Sequence[str]) -> str:
    """Return the first of the offers that `Accept` likes best (RFC 9110, 12.5.1).

    Raises:
        NotAcceptable: the header allows none of the offers.
    """
    if not accept or not accept.strip():
        return offers[0]
    ranges = [_media_range(item) for item in accept.split(",")]
    best, best_quality = offers[0], 0.0
    for offer in offers:
        fits = [
            (name == offer, name != "*/*", quality)
            for name, quality in ranges
            if name in (offer, offer.split("/")[0] + "/*", "*/*")
        ]
        quality = max(fits)[2] if fits else 0.0  # the most specific range decides
        if quality > best_quality:
            best, best_quality = offer, quality
    if best_quality == 0.0:
        raise NotAcceptable(
            "The Accept header allows no form that this route offers.",
            received=accept[:200],
            expected=list(offers),
            fix=f"Send one of these in Accept, or leave it out for {offers[0]}.",
        )
    return best


def media_parameter(accept: str, form: str, key: str) -> str | None:
    """Return the value of `form; key=value` in an `Accept` header; None if absent."""
    for item in accept.split(","):
        name, *parameters = (part.strip() for part in item.lower().split(";"))
        for parameter in parameters:
            found, _, value = parameter.partition("=")
            if name == form and found.strip() == key:
                return value.strip().strip('"')
    return None


def _media_range(item: str) -> tuple[str, float]:
    name, *parameters = (part.strip() for part in item.lower().split(";"))
    quality = 1.0
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return name, min(1.0, max(0.0, quality)) if math.isfinite(quality) else 0.0


def media_type(content_type: str | None) -> str:
    """Return a body's media type without parameters; JSON if there is no header."""
    return (content_type or JSON).split(";")[0].strip().lower()


def content_coding(given: Sequence[str]) -> str | None:
    """Return a body's coding, from its Content-Encoding headers; None without one.

    Raises:
        UnsupportedMediaType: an unknown coding, or several.
    """
    names = [name for line in given for part in line.split(",") if (name := part.strip().lower())]
    packed = [name for name in names if name != "identity"]
    if len(packed) > 1 or any(name not in CODINGS for name in packed):
        raise UnsupportedMediaType(
            "The body's content coding is not supported.",
            received=", ".join(names)[:100],
            expected=list(CODINGS),
            fix="Send the body uncompressed, without Content-Encoding, or with gzip.",
        )
    return packed[0] if packed else None


def inflate(raw: bytes, coding: str | None, limit: int) -> bytes:
    """Decompress a body, never producing more than `limit` bytes.

    Raises:
        BodyTooLarge: the result would be longer.
        MalformedBody: the body does not have this coding, or is cut off.
    """
    if coding is None:
        return raw
    out, left = bytearray(), raw
    try:
        while left:
            unpack = zlib.decompressobj(CODINGS[coding])
            while left and not unpack.eof:
                out += unpack.decompress(left, min(_PIECE, limit - len(out) + 1))
                if len(out) > limit:
                    raise BodyTooLarge(
                        f"The body is larger than {limit} bytes when decompressed.",
                        received=f"{len(raw)} bytes of {coding}",
                        expected=f"at most {limit} bytes",
                        fix="Send less data in a request.",
                    )
                left = unpack.unconsumed_tail
            if not unpack.eof:
                raise zlib.error("it ends too early")
            left = unpack.unused_data.lstrip(b"\0") if coding != "deflate" else b""
    except zlib.error as error:
        raise MalformedBody(
            f"The body is not {coding}: {error}.",
            expected=f"a complete body compressed with {coding}",
            fix="Compress it again, or send it uncompressed, without Content-Encoding.",
        ) from None
    return bytes(out)


def decode_body(
    content_type: str | None,
    raw: bytes,
    max_json_bytes: int,
    rows: str | None = None,
    query: Mapping[str, str] | None = None,
) -> Body:
    """Decode a JSON object, or rows (CSV) or tensors (safetensors) with the other fields.

    Args:
        content_type: the Content-Type header.
        raw: the body; unless safetensors, no longer than `max_json_bytes`.
        max_json_bytes: the most JSON to decode.
        rows: the request's field that holds rows; None if it has none.
        query: the other fields of a CSV body.

    Raises:
        BodyTooLarge: the header of a safetensors file has more JSON.
        UnsupportedMediaType: the body is declared as neither.
        MalformedBody: the body is not JSON, not an object, not CSV, or not safetensors.
        InvalidRequest: the body has NaN or an infinity, which JSON lacks, or unknown tensors.
    """
    kind = media_type(content_type)
    if kind == BINARY:
        return _decode_binary(raw, max_json_bytes)
    if kind == CSV:
        return Body(decode_csv(raw, rows, query or {}))
    # `curl -d` labels its body as a form by default: a brace shows that it is JSON.
    form = kind == "application/x-www-form-urlencoded" and raw.lstrip()[:1] in (b"{", b"")
    if kind in (JSON, "text/json", "text/plain") or kind.endswith("+json") or form:
        return Body(_json_object(raw, "The body"))
    raise UnsupportedMediaType(
        "The body's content type is not supported.",
        received=kind[:100],
        expected=[JSON, BINARY, CSV],
        fix=f"Send JSON with 'Content-Type: {JSON}', rows as {CSV}, or {_BINARY_FORM}.",
    )


def _json_object(raw: bytes | str, what: str) -> dict[str, Any]:
    fix = 'Send a JSON object such as {"num_samples": 4}; {} asks for the defaults.'
    if not raw.strip():
        raise MalformedBody(f"{what} is empty.", expected="a JSON object", fix=fix)
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
        near = text[error.pos : error.pos + 16]
        where = f"line {error.lineno}, column {error.colno}"
        no_number = near.lstrip("-").startswith(("NaN", "Infinity", "nan", "inf"))
        if no_number or "infinity" in error.msg:
            raise InvalidRequest(
                f"{what} holds NaN or an infinity ({where}), which JSON does not have.",
                received=near,
                expected="finite numbers",
                fix="Remove or replace such values; mark what was not observed in `known`.",
            ) from None
        raise MalformedBody(
            f"{what} is not JSON: {error.msg.split(':')[0]} ({where}).",
            received=near,
            expected="a JSON object",
            fix=fix,
        ) from None
    if not isinstance(fields, dict):
        raise MalformedBody(
            f"{what} is JSON, but not an object: it is of type {json_kind(fields)}.",
            expected="a JSON object",
            fix=fix,
        )
    return fields


def _decode_binary(raw: bytes, max_json_bytes: int) -> Body:
    length = int.from_bytes(raw[:8], "little")  # of the header, which follows and is JSON
    if max_json_bytes < length < len(raw):
        raise BodyTooLarge(
            "The header of the safetensors file is too large.",
            received=f"{length} bytes",
            expected=f"at most {max_json_bytes} bytes",
            fix="Send data as tensors, not in the metadata.",
        )
    try:
        tensors = safetensors.torch.load(raw)
        header = json.loads(raw[8 : 8 + length])
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise MalformedBody(
            f"The body is not a safetensors file: {error}.",
            expected=_BINARY_FORM,
            fix=f"Write it with safetensors' own save(), or send JSON with 'Content-Type: {JSON}'.",
        ) from None
    unknown = sorted(set(tensors) - set(TENSORS))
    if unknown:
        raise InvalidRequest(
            f"The body has tensors with unknown names: {', '.join(unknown)[:200]}.",
            expected=_BINARY_FORM,
            fix="Rename or remove them.",
        )
    metadata = header.get("__metadata__") or {}
    fields = {}
    if REQUEST_KEY in metadata:
        fields = _json_object(metadata[REQUEST_KEY], f'The metadata field "{REQUEST_KEY}"')
    both = sorted(set(fields) & set(tensors))
    if both:
        raise InvalidRequest(
            f"{', '.join(both)} were sent twice, as a tensor and as a field.", fix="Send only one."
        )
    return Body(fields, tensors)


@final
class Columns:
    """A list of objects with the same fields, held as one array [n] per field.

    Half a million objects would take hundreds of megabytes. This is not a dataclass, because
    pydantic would dump that as a dictionary.

    Args:
        fields: the arrays, by name.
    """

    def __init__(self, fields: Mapping[str, NDArray[Any]]) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return min(len(column) for column in self.fields.values())

    def objects(self, start: int, end: int) -> list[dict[str, Any]]:
        """Return a slice as objects."""
        parts = [column[start:end].tolist() for column in self.fields.values()]
        return [dict(zip(self.fields, row, strict=True)) for row in zip(*parts, strict=True)]


def to_json(answer: Mapping[str, Any]) -> bytes:
    """Write JSON with NaN and infinities as null, and float32 arrays at float32 precision.

    It is written in pieces, because orjson holds the GIL while it writes, so the largest answers
    would block every thread for a third of a second. Pieces also need less memory.
    """
    out = BytesIO()
    out.writelines(_pieces(answer, _LEVELS))
    return out.getvalue()


def _pieces(value: object, levels: int) -> Iterator[bytes]:
    opening = b"["
    if isinstance(value, np.ndarray) and value.ndim > 1 and len(value):
        for row in value:
            yield opening
            yield from _pieces(row, levels) if row.size > _NUMBERS else [_dumps(row)]
            opening = b","
        yield b"]"
    elif isinstance(value, Columns):
        yield opening
        for start in range(0, len(value), _OBJECTS):
            part = _dumps(value.objects(start, start + _OBJECTS))[1:-1]
            yield b"," + part if start else part
        yield b"]"
    elif isinstance(value, list) and value and levels:
        for item in value:
            yield opening
            yield from _pieces(item, levels - 1)
            opening = b","
        yield b"]"
    elif isinstance(value, dict) and value and levels:
        opening = b"{"
        for key, of in value.items():
            yield opening + _dumps(key) + b":"
            yield from _pieces(of, levels - 1)
            opening = b","
        yield b"}"
    else:
        yield _dumps(value)


def _dumps(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def to_binary(answer: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """Write a safetensors file, with the other fields as JSON under "answer"."""
    exact = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    return safetensors.torch.save(exact, metadata={ANSWER_KEY: to_json(answer).decode()})


def json_kind(value: object) -> str:
    """Return JSON's name for the type of a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def plain(x: Tensor, space: Space) -> NDArray[Any] | list[Any]:
    """Convert for JSON: to integers if all are whole (bits, 8-bit images), else to the dtype.

    Rows of a table are objects by column name.
    """
    rows = objects(x, space)
    if rows is not None:
        return rows
    array = x.detach().to("cpu", space.dtype).numpy()
    if space.greatest is not None:
        with np.errstate(invalid="ignore"):  # values that do not fit differ below
            whole = array.astype(np.uint16)
        if bool((whole == array).all()):
            return np.ascontiguousarray(whole)
    return np.ascontiguousarray(array)
