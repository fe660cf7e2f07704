"""Reads a request's arrays (nested lists, PNGs or tensors) into tensors of the model's shape.

Images are 0..255 as [C, H, W] (or [H, W] for one channel), vectors [D] in the units of their data
set, bits 0/1. Shapes are checked here, values by the model's data space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion.space import Space
from diffusion.table import Unfit
from noneq.reading.tables import advice
from service.codecs.json import json_kind
from service.codecs.limits import Limits, read_limits
from service.codecs.png import decode_mask, decode_png
from service.errors import InvalidRequest, refusal

_NUMBERS = {int, float, bool}


@dataclass(frozen=True)
class Events:
    """N examples.

    Attributes:
        values: [N, *event], data units, of the space's dtype.
        opaque: [N, *event] bool, False where a PNG was transparent or a table has a gap; None if
            all was opaque.
        limits: of numbers of a table that have no value; None for none.
    """

    values: Tensor
    opaque: Tensor | None = None
    limits: Limits | None = None


def read_events(
    value: Sequence[Any] | Tensor, space: Space, name: str, dtype: torch.dtype | None = None
) -> Events:
    """Read N examples from lists, PNGs, a tensor, or rows of a table, whose gaps are not opaque.

    Args:
        value: the field's value.
        space: the model's data space.
        name: the field's name, for problems.
        dtype: the dtype of the result; by default the space's.

    Raises:
        InvalidRequest: the values are not numbers, or have another shape.
    """
    dtype = dtype or space.dtype
    if isinstance(value, Tensor):
        found = _fit(_real(value, dtype, name), space, name)
        return Events(found, None if space.table is None else ~found.isnan())
    value, limits = read_limits(value, space, name)
    try:
        rows = space.encode(value)
    except Unfit as error:
        raise unfit(error, name) from None
    except ValueError as error:
        raise refusal(error, name) from None
    if rows is not None:
        return Events(rows, ~rows.isnan(), limits)
    if any(isinstance(item, dict) for item in value):
        raise InvalidRequest(
            f"{name} holds objects or CSV, and this model's data are not a table.",
            location=name,
            expected=f"arrays of shape {list(space.shape)}",
            fix="Send nested lists of numbers, or use a model of kind table (GET /models).",
        )
    if not any(isinstance(item, str) for item in value):
        return Events(_fit(_numbers(value, dtype, name), space, name))
    values, opaque = [], []
    for position, item in enumerate(value):
        place = f"{name}[{position}]"
        if isinstance(item, str):
            pixels, solid = decode_png(item, space, place)
            values.append(torch.from_numpy(pixels))
            opaque.append(torch.from_numpy(solid).expand(space.shape))
        else:
            values.append(_fit(_numbers([item], dtype, place), space, place)[0])
            opaque.append(torch.ones(space.shape, dtype=torch.bool))
    solid_all = torch.stack(opaque)
    return Events(torch.stack(values), None if bool(solid_all.all()) else solid_all)


def check_values(values: Tensor, space: Space, name: str) -> None:
    """Raise InvalidRequest unless [N, *event] are data of this space: finite, in range, whole."""
    try:
        space.check(values)
    except Unfit as error:
        raise unfit(error, name) from None
    except ValueError as error:
        raise refusal(error, name) from None


def unfit(error: Unfit, name: str) -> InvalidRequest:
    """Report a cell that is not what its column holds."""
    return InvalidRequest(
        f"Row {error.row}, column '{error.column}', is not what the column holds.",
        location=name,
        index=error.row,
        column=error.column,
        received=error.came.strip("'")[:100],
        expected=error.expected,
        fix="Correct the cell, or leave it empty: then it is a gap.",
    )


def read_mask(value: Sequence[Any] | str | Tensor, space: Space, count: int, name: str) -> Tensor:
    """Read which elements were observed, [N, *event] bool, from one mask for all N or one each.

    1 or white means observed; a mask of pixels [H, W] applies to all channels.
    """
    if isinstance(value, str):
        mask = torch.from_numpy(decode_mask(value, space, name).copy())[None]
    elif isinstance(value, Tensor):
        mask = _fit_mask(_real(value, torch.float32, name), space.shape, name)
    elif any(isinstance(item, str) for item in value):
        mask = torch.cat([read_mask(m, space, 1, f"{name}[{i}]") for i, m in enumerate(value)])
    else:
        mask = _fit_mask(_numbers(value, torch.float32, name), space.shape, name)
    if len(mask) not in (1, count):
        raise InvalidRequest(
            f"There are {len(mask)} masks for {count} observations.",
            location=name,
            fix="Send one mask for all, or one each.",
        )
    if bool(((mask != 0) & (mask != 1)).any()):
        raise InvalidRequest(
            "A mask has values other than 0 and 1.",
            location=name,
            expected="1 where a value was observed, 0 where it was not",
        )
    return (mask == 1).expand(count, *space.shape)


def _fit(array: Tensor, space: Space, name: str) -> Tensor:
    """Reshape to [N, *event], from [N, *event] or, for one channel, [N, H, W]."""
    shape, found = space.shape, tuple(array.shape)
    grey = len(shape) == 3 and shape[0] == 1
    if found[1:] == shape and found[0]:
        return array
    if grey and found[1:] == shape[1:] and found[0]:
        return array[:, None]
    one = f"{list(shape)}" + (f" or {list(shape[1:])}" if grey else "")
    single = found == shape or (grey and found == shape[1:])
    raise InvalidRequest(
        f"{name} does not have the shape of this model's data or of what is observed of them.",
        location=name,
        received=f"shape {list(found)}",
        expected=f"a list of one or more arrays, each of shape {one}",
        fix="This is one example: put it into a list." if single else _advice(found, shape),
    )


def _advice(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    said = advice(found, shape)
    return f"{said[:1].upper()}{said[1:]}."


def _fit_mask(array: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Reshape one mask or N to [1 or N, *event], expanding a mask of pixels over the channels."""
    pixels = shape[1:] if len(shape) == 3 else None
    found = tuple(array.shape)
    if found == shape:
        return array[None]
    if found[1:] == shape and found[0]:
        return array
    if pixels is not None and found == pixels:
        return array.expand(1, *shape)
    if pixels is not None and found[1:] == pixels and found[0]:
        return array[:, None].expand(-1, *shape)
    raise InvalidRequest(
        f"{name} does not have the shape of this model's data.",
        location=name,
        received=f"shape {list(found)}",
        expected=f"shape {list(shape)}" + (f" or {list(pixels)}" if pixels is not None else ""),
        fix="Send one mask for all, or a list with one each.",
    )


def _numbers(value: Sequence[Any], dtype: torch.dtype, name: str) -> Tensor:
    # Checked first, because numpy would store every number as a string of the greatest length.
    other = _other(value)
    if other is not None:
        raise InvalidRequest(
            f"{name} has something other than numbers.",
            location=name,
            received=other,
            expected="finite numbers",
            fix="Mark unobserved values in `known` instead of leaving them out.",
        )
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, TypeError):
        raise InvalidRequest(
            f"{name} is ragged: its lists have different lengths or depths.",
            location=name,
            fix="Send complete arrays.",
        ) from None
    return torch.from_numpy(array).to(dtype)  # beyond float32: infinite, and refused later


def _real(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if value.is_complex():
        raise InvalidRequest(f"{name} is complex.", location=name, expected="real numbers")
    if dtype == torch.float64 and value.is_floating_point() and value.dtype != dtype:
        raise InvalidRequest(
            f"{name} is {str(value.dtype).removeprefix('torch.')}, which rounds this model's data: "
            "they are far from 0 compared with their spread.",
            location=name,
            expected="float64",
            fix="Send float64 tensors, or JSON.",
        )
    return value.to(dtype)


def _other(value: object) -> str | None:
    """Return the JSON type of an element of nested lists that is no number; None if all are."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            if not set(map(type, item)) <= _NUMBERS:
                waiting.extend(part for part in item if type(part) not in _NUMBERS)
        elif type(item) not in _NUMBERS:
            return json_kind(item)
    return None
