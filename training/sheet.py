"""A sheet of samples, uint8 [height, width, 3]: images in a grid, points, rows of bits.

Bits that are the pixels of an image are drawn as one, ones white.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from diffusion.space import Space

Picture = npt.NDArray[np.uint8]

GAP = 2

SHEET_ROWS = {"image": 64, "vector": 2000, "bits": 40, "table": 2000}


def sheet(space: Space, rows: Tensor, columns: int | None = None) -> Picture:
    """The picture of `rows` [N, *event], data units.

    Args:
        space: of the data; decides what the picture is.
        rows: the data.
        columns: of a grid of images; the nearest to a square if left out.
    """
    if len(space.shape) == 3:
        top = 1 if space.greatest == 1 else 255
        return _images(rows * (255 / top), columns or math.ceil(math.sqrt(len(rows))))
    if space.greatest == 1:
        return _bits(rows.flatten(1))
    return _points(space.to_model(rows).flatten(1))


def _images(rows: Tensor, columns: int) -> Picture:
    pixels = rows.round().clamp(0, 255).to(torch.uint8)
    if pixels.shape[1] != 3:
        pixels = pixels[:, :1].expand(-1, 3, -1, -1)
    count, _, height, width = pixels.shape
    lines = math.ceil(count / columns)
    shape = (lines * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3)
    picture = np.full(shape, 96, dtype=np.uint8)
    for index in range(count):
        top = GAP + index // columns * (height + GAP)
        left = GAP + index % columns * (width + GAP)
        tile = pixels[index].permute(1, 2, 0).numpy()
        picture[top : top + height, left : left + width] = tile
    return picture


def _bits(rows: Tensor, side: int = 10) -> Picture:
    grid = np.kron(rows.numpy() < 0.5, np.ones((side, side)))
    picture = np.repeat((grid * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    picture[::side, :] = 160
    picture[:, ::side] = 160
    return picture


def _points(rows: Tensor, side: int = 512) -> Picture:
    """The first two coordinates in model units, 3 each way; of one, rows from bottom to top."""
    if rows.shape[1] == 1:
        rows = torch.cat((rows, torch.linspace(-2.9, 2.9, len(rows))[:, None]), 1)
    places = ((rows[:, :2] / 6.0 + 0.5) * (side - 1)).round().long()
    inside = ((places >= 1) & (places < side - 1)).all(dim=1)
    picture = np.full((side, side, 3), 255, dtype=np.uint8)
    for x, y in places[inside].tolist():
        picture[side - 1 - y : side + 1 - y, x : x + 2] = (31, 75, 153)
    return picture
