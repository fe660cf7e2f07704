"""PNGs in: a base64 PNG as pixels 0..255, or bits in black and white, and where it is opaque.

The size in the header is held against the model's before any pixel is decoded, so a small file that
unfolds to gigabytes costs nothing; Pillow is asked for no other format.
"""

import base64
import binascii
import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion.space import DataSpace
from service.problems import InvalidRequest

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DATA_URL = "data:image/png;base64,"


def decode_png(
    text: str, space: DataSpace, place: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """A base64 PNG, plain or as a data: URL.

    Args:
        text: what came.
        space: whose size and channels it has to have; a grey PNG serves three channels too.
        place: where it came, for the problem.

    Returns:
        Values [C, H, W] in data units, 0..255 or bits (white is 1), and opaque [H, W] (alpha above
        0).

    Raises:
        InvalidRequest: no image is wanted, or it is no PNG, of another size or depth, or damaged;
            or bits are wanted and there are greys.
    """
    if space.kind == "vector" or len(space.shape) != 3 or space.shape[0] not in (1, 3):
        raise InvalidRequest(
            f"{place} is text, and this model's data are no images a PNG can hold.",
            location=place,
            expected=f"numbers of shape {list(space.shape)}",
            fix="Send nested lists of numbers.",
        )
    pixels, opaque = _pixels(text, space.shape, place)
    if space.kind == "bits":
        return _white(np.where(opaque, pixels, 0), place, "0", "1").astype(np.float32), opaque
    return pixels, opaque


def decode_mask(text: str, space: DataSpace, place: str) -> NDArray[np.bool_]:
    """A PNG in black (unknown) and white (observed), [C, H, W]; one mask for all channels."""
    if len(space.shape) != 3:
        raise InvalidRequest(
            f"{place} is text, and this model's data are no images a PNG can hold.",
            location=place,
            expected=f"zeros and ones of shape {list(space.shape)}",
            fix="Send nested lists of numbers.",
        )
    pixels, _ = _pixels(text, (1, *space.shape[1:]), place)
    return np.broadcast_to(_white(pixels, place, "unknown", "observed"), space.shape)


def _pixels(
    text: str, shape: tuple[int, ...], place: str
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pixels [C, H, W], 0..255, and opaque [H, W], of the wanted shape."""
    channels, height, width = shape
    raw = _png_bytes(text, place)
    found_width, found_height, depth = struct.unpack(">IIB", raw[16:25])
    if (found_width, found_height) != (width, height) or depth > 8:
        raise InvalidRequest(
            f"{place} is a PNG of another size or depth.",
            location=place,
            received=f"{found_width} x {found_height} pixels of {depth} bits",
            expected=f"{width} x {height} pixels (width x height) of at most 8 bits a channel",
            fix="Resize, cut or convert it first.",
        )
    try:
        with Image.open(BytesIO(raw), formats=["PNG"]) as image:
            rgba = np.asarray(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise InvalidRequest(
            f"{place} is a damaged PNG: {error}.", location=place, fix="Encode it again."
        ) from None
    colours, opaque = np.moveaxis(rgba[..., :3], -1, 0), rgba[..., 3] > 0
    if channels == 1:
        if bool(((colours[:1] != colours) & opaque).any()):
            raise InvalidRequest(
                f"{place} is a PNG in colour.",
                location=place,
                expected="a grey image",
                fix="Convert it to grey first.",
            )
        colours = colours[:1]
    return colours.astype(np.float32), opaque


def _white(pixels: NDArray[np.float32], place: str, black: str, white: str) -> NDArray[np.bool_]:
    """Where pixels are white; InvalidRequest, with what the two mean, where some are grey."""
    other = (pixels != 0) & (pixels != 255)
    if bool(other.any()):
        raise InvalidRequest(
            f"{place} is a PNG with greys.",
            location=place,
            received=f"grey {pixels[other][0]:g}",
            expected=f"black ({black}) and white ({white})",
            fix="Threshold it first.",
        )
    white_pixels: NDArray[np.bool_] = pixels > 0
    return white_pixels


def _png_bytes(text: str, place: str) -> bytes:
    payload = text.strip()
    if payload[:5].lower() == "data:":
        if payload[: len(_DATA_URL)].lower() != _DATA_URL:
            raise InvalidRequest(
                f"{place} is a data URL of something else.",
                location=place,
                received=payload[:40],
                expected=f"{_DATA_URL}...",
                fix="Convert it to PNG: no other format is read.",
            )
        payload = payload[len(_DATA_URL) :]
    try:
        raw = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if raw[:8] != _SIGNATURE or raw[12:16] != b"IHDR" or len(raw) < 33:
        raise InvalidRequest(
            f"{place} is text, but no PNG in base64.",
            location=place,
            received=payload[:40],
            expected="a PNG in base64, plain or as a data: URL",
            fix="Encode a PNG file with base64, or send nested lists of numbers.",
        )
    return raw
