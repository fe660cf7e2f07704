"""Draws arrays: images side by side, points as a density, bits and long vectors as a raster.

The shape decides: [C, H, W] is an image, black and white if it holds only 0 and 1; two elements are
a point in the plane; anything else is a line of a raster. All of this is numpy; only writing or
showing a file needs Pillow.
"""

import math
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from noneq.codec import Array
from noneq.errors import no_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

_GAP = 2  # pixels between tiles
_SIDE = 128  # side of a density, in pixels; a cell of it is one or more


def sheet(samples: Array) -> Pixels:
    """Draw samples [n, *shape] as one picture, uint8 [height, width, 3]."""
    if samples.ndim == 4:
        tiles = [tile(x, top(samples)) for x in samples]
        columns = math.ceil(math.sqrt(len(tiles)))
        return _grid([tiles[i : i + columns] for i in range(0, len(tiles), columns)])
    flat = samples.reshape(len(samples), -1)
    return _density(flat) if flat.shape[1] == 2 else _raster(flat)


def strips(samples: Array, mean: Array, std: Array) -> Pixels:
    """Draw samples [N, n, *shape], mean and std [N, *shape]: a line or block per example."""
    if samples.ndim == 5:
        white = top(samples)
        lines = zip(samples, mean, 2 * std, strict=True)
        return _grid([[tile(x, white) for x in (*drawn, m, s)] for drawn, m, s in lines])
    if math.prod(samples.shape[2:]) == 2:
        return _density(samples.reshape(-1, 2))
    return _raster(samples.reshape(samples.shape[0] * samples.shape[1], -1))


def tile(x: Array, white: float) -> Pixels:
    """Convert [C, H, W] in 0..white to [H, W', 3]; channels other than RGB lie side by side."""
    levels = np.clip(np.rint(np.nan_to_num(x) * (255.0 / white)), 0, 255).astype(np.uint8)
    if len(levels) == 3:
        return np.ascontiguousarray(np.moveaxis(levels, 0, -1))
    return np.repeat(np.concatenate(list(levels), axis=1)[..., None], 3, axis=-1)


def top(samples: Array) -> float:
    """Return the value of white: 1 if all values are 0 or 1, else 255."""
    return 1.0 if bool(((samples == 0) | (samples == 1)).all()) else 255.0


def _grid(lines: Sequence[Sequence[Pixels]]) -> Pixels:
    height, width, _ = lines[0][0].shape
    if len(lines) == len(lines[0]) == 1:
        return lines[0][0]  # one image is itself, pixel for pixel
    columns = max(len(line) for line in lines)
    size = (len(lines) * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3)
    out = np.full(size, 255, np.uint8)
    for i, line in enumerate(lines):
        for j, one in enumerate(line):
            y, x = i * (height + _GAP) + _GAP, j * (width + _GAP) + _GAP
            out[y : y + height, x : x + width] = one
    return out


def _density(points: Array) -> Pixels:
    """Draw how many points [n, 2] fall into each cell of a square; dark means many."""
    finite = points[np.isfinite(points).all(axis=1)].astype(np.float64)
    if not len(finite):
        return np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    middle = (finite.min(axis=0) + finite.max(axis=0)) / 2
    reach = max(float(np.ptp(finite, axis=0).max()) * 0.55, 1e-6)
    ends = [(float(m) - reach, float(m) + reach) for m in middle]
    cells = min(_SIDE, 4 << (len(finite).bit_length() // 2))  # fewer points, larger cells
    counts, _, _ = np.histogram2d(finite[:, 0], finite[:, 1], bins=cells, range=ends)
    ink = _ink(np.sqrt(counts / counts.max()).T[::-1])
    return ink.repeat(_SIDE // cells, axis=0).repeat(_SIDE // cells, axis=1)


def _raster(rows: Array) -> Pixels:
    """Draw one line per row, shaded from its least value to its greatest."""
    values = np.nan_to_num(rows.astype(np.float64))
    low, high = float(values.min()), float(values.max())
    factor = max(1, min(16, 512 // max(rows.shape)))
    ink = _ink((values - low) / max(high - low, 1e-12))
    return ink.repeat(factor, axis=0).repeat(factor, axis=1)


def _ink(share: Array) -> Pixels:
    grey = np.rint(255 - 235 * share).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def to_pillow(pixels: Pixels) -> "Image":
    """Convert to a Pillow image; raise MissingExtra if Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError as error:
        raise no_pillow() from error
    return Image.fromarray(pixels)


def to_png(pixels: Pixels) -> bytes:
    """Encode as a PNG; raise MissingExtra if Pillow is not installed."""
    out = BytesIO()
    to_pillow(pixels).save(out, "PNG")
    return out.getvalue()
