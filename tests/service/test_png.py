"""Pictures in: grey levels for images, black and white for bits, and nothing for vectors."""

import base64
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffusion.space import DataSpace
from noneq.reading.png import SIGNATURE
from service.codecs.png import decode_mask, decode_png
from service.errors import InvalidRequest

BITS = DataSpace(kind="bits", shape=(1, 2, 3))
TWO_LEVELS = DataSpace(kind="image", shape=(1, 2, 3), shift=0.5, scale=0.5, levels=2)
GREY = DataSpace(kind="image", shape=(1, 2, 3), shift=127.5, scale=128.0, levels=256)
COLOUR = DataSpace(kind="image", shape=(3, 2, 3), shift=127.5, scale=128.0, levels=256)
PIXELS = np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> str:
    """The pixels as a base64 PNG."""
    out = BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize("space", [BITS, TWO_LEVELS], ids=["bits", "two levels"])
def test_two_values_are_read_from_black_and_white(space: DataSpace) -> None:
    values, opaque = decode_png(png(PIXELS), space, "data[0]")
    assert values.tolist() == [[[0, 1, 0], [1, 1, 0]]]
    assert values.dtype == np.float32
    assert opaque.all()


def test_the_same_picture_is_grey_levels_for_an_image() -> None:
    values, _ = decode_png(png(PIXELS), GREY, "data[0]")
    assert np.array_equal(values, PIXELS[None])


def test_a_grey_pixel_is_no_bit_unless_it_is_transparent() -> None:
    grey = PIXELS.copy()
    grey[0, 1] = 100
    with pytest.raises(InvalidRequest, match="greys"):
        decode_png(png(grey), BITS, "data[0]")
    rgba = np.repeat(grey[..., None], 4, axis=-1)
    rgba[..., 3] = np.where(grey == 100, 0, 255)
    values, opaque = decode_png(png(rgba), BITS, "data[0]")
    assert values.tolist() == [[[0, 0, 0], [1, 1, 0]]]
    assert opaque.tolist() == [[True, False, True], [True, True, True]]


@pytest.mark.parametrize("space", [BITS, GREY, COLOUR], ids=["bits", "grey", "colour"])
def test_a_mask_is_black_and_white_and_holds_for_every_channel(space: DataSpace) -> None:
    mask = decode_mask(png(PIXELS), space, "known")
    assert mask.shape == space.shape
    assert (mask == (PIXELS == 255)).all()
    with pytest.raises(InvalidRequest, match="greys"):
        decode_mask(png(PIXELS // 2), space, "known")


def test_a_vector_has_no_picture() -> None:
    vector = DataSpace(kind="vector", shape=(6,))
    for refused in (decode_png, decode_mask):
        with pytest.raises(InvalidRequest, match="not images"):
            refused(png(PIXELS), vector, "data[0]")


def rgba(alpha: NDArray[np.uint8]) -> str:
    """White everywhere, as seen as alpha says."""
    return png(np.dstack([np.full((2, 3, 3), 255, np.uint8), alpha]))


def test_what_is_transparent_is_unknown_in_a_mask_as_in_what_was_seen() -> None:
    """Of what shines through in part nothing is known either."""
    alpha = np.array([[0, 255, 1], [254, 128, 255]], np.uint8)
    mask = decode_mask(rgba(alpha), COLOUR, "known")
    assert np.array_equal(mask, [alpha == 255] * 3)
    _, opaque = decode_png(rgba(alpha), GREY, "observed[0]")
    assert np.array_equal(opaque, alpha == 255)


def chunk(name: bytes, body: bytes) -> bytes:
    named = name + body
    return struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))


def header(width: int, height: int, depth: int = 8) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))


def grey(*chunks: bytes) -> str:
    """A PNG that is put together by hand."""
    raw = SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")
    return base64.b64encode(raw).decode()


PIXEL_ROWS = chunk(b"IDAT", zlib.compress(bytes(2 * 4)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (grey(header(3, 2), header(13300, 13300), PIXEL_ROWS), "more than one header"),
        (grey(header(13300, 13300), PIXEL_ROWS), "expected 3 x 2"),
        (grey(header(3, 2, 16), PIXEL_ROWS), "more than 8 bits"),
        (grey(header(3, 2), chunk(b"IDAT", zlib.compress(bytes(4)))), "1 of 2 rows are there"),
        (grey(header(3, 2), PIXEL_ROWS[:-1] + b"\0"), "wrong checksum"),
        (grey(header(3, 2), chunk(b"IDAT", zlib.compress(bytes(10**7)))), "more pixels"),
        (png(PIXELS)[:60], "cut short"),
    ],
)
def test_what_is_decoded_is_what_was_checked(text: str, told: str) -> None:
    for decode in (decode_png, decode_mask):
        with pytest.raises(InvalidRequest, match=told):
            decode(text, GREY, "data[0]")
    with pytest.raises(InvalidRequest, match=told):
        decode_png("data:image/png;base64," + text, GREY, "data[0]")


def test_a_picture_lies_as_a_viewer_shows_it() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = BytesIO()
    Image.fromarray(np.rot90(PIXELS).copy()).save(out, "PNG", exif=exif)
    values, _ = decode_png(base64.b64encode(out.getvalue()).decode(), GREY, "data[0]")
    assert np.array_equal(values, PIXELS[None])
