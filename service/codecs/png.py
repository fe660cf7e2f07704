"""Decodes a request's base64 PNGs to pixels 0..255 or bits, and to a mask of opaque pixels.

`noneq.reading.pictures` checks the size and every chunk before decoding any pixel, so a small file
that decompresses to gigabytes does no harm. Pillow may decode no other format.
"""

import base64
import binascii

import numpy as np
from numpy.typing import NDArray

from diffusion.space import Space
from noneq.errors import FileError
from noneq.reading import pictures
from noneq.reading.pictures import Picture
from noneq.reading.png import SIGNATURE
from service.errors import InvalidRequest

_DATA_URL = "data:image/png;base64,"


def decode_png(
    text: str, space: Space, place: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Decode a base64 PNG, plain or as a data: URL.

    Args:
        text: the PNG.
        space: gives the size and channels; a grey PNG is accepted for three channels too.
        place: the field's location, for problems.

    Returns:
        Values [C, H, W] in data units, 0..255 or bits (white is 1), and opaque [H, W], False for
        pixels with any transparency.

    Raises:
        InvalidRequest: the model's data are not images, the text is not an intact PNG of their
            size, or the data are bits and the PNG has grey pixels.
    """
    if not space.in_pngs:
        raise InvalidRequest(
            f"{place} is text, but this model's data are not images that a PNG can hold.",
            location=place,
            expected=f"numbers of shape {list(space.shape)}",
            fix="Send nested lists of numbers.",
        )
    picture = _picture(text, space.shape, place)
    try:
        pixels = picture.channels(space.shape[0])
        if space.greatest == 1:
            pixels = np.repeat(picture.white("0", "1")[None], len(pixels), axis=0)
    except FileError as error:
        raise _refused(error, place) from None
    return pixels.astype(np.float32), picture.opaque


def decode_mask(text: str, space: Space, place: str) -> NDArray[np.bool_]:
    """Decode a mask [C, H, W]: white is observed; black or not opaque is unknown."""
    if len(space.shape) != 3:
        raise InvalidRequest(
            f"{place} is text, but this model's data are not images that a PNG can hold.",
            location=place,
            expected=f"zeros and ones of shape {list(space.shape)}",
            fix="Send nested lists of numbers.",
        )
    picture = _picture(text, space.shape, place)
    try:
        return np.broadcast_to(picture.white("unknown", "observed"), space.shape)
    except FileError as error:
        raise _refused(error, place) from None


def _picture(text: str, shape: tuple[int, ...], place: str) -> Picture:
    """Decode a picture; raise InvalidRequest unless it has the size of `shape`."""
    raw = _png_bytes(text, place)
    try:
        return pictures.decode(raw, (shape[-1], shape[-2]), formats=("PNG",))
    except FileError as error:
        raise _refused(error, place) from None


def _refused(error: FileError, place: str) -> InvalidRequest:
    """Convert an error of the picture reader to a problem."""
    detail, _, fix = str(error).partition(": ")
    return InvalidRequest(
        f"{place} is a PNG that cannot be used: {detail}.",
        location=place,
        received=error.received,
        expected=error.expected,
        fix=f"{fix[:1].upper()}{fix[1:]}." if fix else "Encode it again.",
    )


def _png_bytes(text: str, place: str) -> bytes:
    payload = text.strip()
    if payload[:5].lower() == "data:":
        if payload[: len(_DATA_URL)].lower() != _DATA_URL:
            raise InvalidRequest(
                f"{place} is a data URL, but not of a PNG.",
                location=place,
                received=payload[:40],
                expected=f"{_DATA_URL}...",
                fix="Convert it to PNG, the only supported format.",
            )
        payload = payload[len(_DATA_URL) :]
    try:
        raw = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if not raw.startswith(SIGNATURE):
        raise InvalidRequest(
            f"{place} is text, but not a PNG in base64.",
            location=place,
            received=payload[:40],
            expected="a PNG in base64, plain or as a data: URL",
            fix="Encode a PNG file with base64, or send nested lists of numbers.",
        )
    return raw
