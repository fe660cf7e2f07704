"""Pictures in: grey levels for images, black and white for bits, and nothing for vectors."""

import base64
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffusion.space import DataSpace
from service.png import decode_mask, decode_png
from service.problems import InvalidRequest

BITS = DataSpace(kind="bits", shape=(1, 2, 3))
GREY = DataSpace(kind="image", shape=(1, 2, 3), shift=127.5, scale=128.0, levels=256)
COLOUR = DataSpace(kind="image", shape=(3, 2, 3), shift=127.5, scale=128.0, levels=256)
PIXELS = np.array([[0, 255, 0], [255, 255, 0]], dtype=np.uint8)


def png(pixels: NDArray[np.uint8]) -> str:
    """The pixels as a base64 PNG."""
    out = BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_bits_are_read_from_black_and_white() -> None:
    values, opaque = decode_png(png(PIXELS), BITS, "data[0]")
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
        with pytest.raises(InvalidRequest, match="no images"):
            refused(png(PIXELS), vector, "data[0]")
