"""Draws contact sheets: samples as one PNG.

Images become tiles, real vectors a scatter plot of their first two elements, and bits a raster with
one row per sample. A single image without an observation is not enlarged, so that it can be sent
back as data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from diffusion.space import Space
from service.errors import InvalidRequest

Pixels = NDArray[np.uint8]

MAX_PIXELS = 32_000_000
_COLUMNS = 16  # the most samples of one posterior in a line
_GAP = 2  # pixels between tiles
_WHITE = (255, 255, 255)
_HIDDEN = (52, 74, 140)  # colour of unknown elements
_CANVAS, _MARGIN = 640, 56
_COLOURS = ((31, 97, 168), (202, 79, 38), (44, 135, 83), (128, 76, 158), (178, 134, 22))


@dataclass(frozen=True)
class Strip:
    """Samples of one posterior, or of the model itself, in data units.

    Attributes:
        samples: [n, *event].
        observed: [*event]; None for samples of the model itself.
        known: which elements were observed, bool [*event].
        sequence: whether `samples` are one sample's states over time, drawn without a mean.
    """

    samples: Tensor
    observed: Tensor | None = None
    known: Tensor | None = None
    sequence: bool = False


def check_sheet(space: Space, strips: int, samples: int) -> None:
    """Raise InvalidRequest if a sheet of `strips` times `samples` would be too large."""
    if space.drawn_as == "points":
        return
    channels, height, width = (1, 1, *space.shape)[-3:]
    pixels = strips * (samples + 4) * channels * (height + _GAP) * (width + _GAP)
    if pixels > MAX_PIXELS:
        raise InvalidRequest(
            "The contact sheet would be too large.",
            received=f"{strips * samples} samples, about {pixels} pixels",
            expected=f"at most {MAX_PIXELS} pixels",
            fix="Ask for fewer samples, or use application/octet-stream.",
        )


def contact_sheet(space: Space, strips: Sequence[Strip]) -> bytes:
    """Draw all strips as one PNG."""
    if space.drawn_as == "points":
        picture = _scatter(strips)
    elif space.drawn_as == "rows":
        picture = Image.fromarray(_raster(strips))
    else:
        picture = Image.fromarray(_tiles(space, strips))
    out = BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def image(x: Tensor, space: Space) -> bytes | None:
    """Encode one example or estimate [*event], data units, as a PNG; None if not an image.

    Values that are not finite are drawn as 0.
    """
    if space.drawn_as != "image":
        return None
    return contact_sheet(space, [Strip(x.nan_to_num(posinf=0.0, neginf=0.0)[None])])


# ------------------------------------------------------------------------------------------- tiles


def _tiles(space: Space, strips: Sequence[Strip]) -> Pixels:
    top = space.greatest or 255
    first = strips[0]
    if first.sequence:
        lines = [[_tile(x, top) for x in strip.samples] for strip in strips]
    elif len(strips) == 1 and first.observed is None:
        tiles = [_tile(x, top) for x in first.samples]
        if len(tiles) == 1:
            return tiles[0][..., 0] if space.shape[0] != 3 else tiles[0]
        columns = math.ceil(math.sqrt(len(tiles)))
        lines = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    else:
        lines = [line for strip in strips for line in _strip_lines(strip, top)]
    return _grid(lines)


def _strip_lines(strip: Strip, top: int) -> list[list[Pixels]]:
    """Draw the observation, the samples, their mean, and twice their standard deviation."""
    tiles = [_tile(x, top) for x in strip.samples]
    blank = np.full_like(tiles[0], 255)
    seen = blank
    if strip.observed is not None:
        seen = _tile(strip.observed, top)
        if strip.known is not None:
            hidden = ~strip.known.cpu().numpy().any(axis=0)
            if strip.known.shape[0] not in (1, 3):  # channels lie side by side
                hidden = np.concatenate(list(~strip.known.cpu().numpy()), axis=1)
            seen[hidden] = _HIDDEN
    columns = min(len(tiles), _COLUMNS)
    lines = []
    for start in range(0, len(tiles), columns):
        line = tiles[start : start + columns]
        line = line + [blank] * (columns - len(line))
        if start == 0:
            spread = strip.samples.std(0, correction=min(1, len(tiles) - 1))
            ends = [_tile(strip.samples.mean(0), top), _tile(2 * spread, top)]
            lines.append([seen, *line, *ends])
        else:
            lines.append([blank, *line, blank, blank])
    return lines


def _tile(x: Tensor, top: int) -> Pixels:
    """Convert [C, H, W] in 0..top to RGB; channels lie side by side unless there are 1 or 3."""
    array = np.clip(np.rint(x.cpu().numpy() * (255.0 / top)), 0, 255).astype(np.uint8)
    if array.shape[0] == 3:
        return np.ascontiguousarray(np.moveaxis(array, 0, -1))
    return np.repeat(np.concatenate(list(array), axis=1)[..., None], 3, axis=-1)


def _grid(lines: Sequence[Sequence[Pixels]]) -> Pixels:
    height, width, _ = lines[0][0].shape
    columns = max(len(line) for line in lines)
    sheet = np.full(
        (len(lines) * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8
    )
    for i, line in enumerate(lines):
        for j, tile in enumerate(line):
            y, x = i * (height + _GAP) + _GAP, j * (width + _GAP) + _GAP
            sheet[y : y + height, x : x + width] = tile
    return _enlarge(sheet, max(1, 64 // max(height, width)))


def _enlarge(sheet: Pixels, factor: int) -> Pixels:
    fits = math.isqrt(max(1, MAX_PIXELS // (sheet.shape[0] * sheet.shape[1])))
    factor = max(1, min(factor, fits))
    return sheet.repeat(factor, axis=0).repeat(factor, axis=1)


# ------------------------------------------------------------------------------------------ raster


def _raster(strips: Sequence[Strip]) -> Pixels:
    """Draw one row per sample, ones dark; above them the observation, below them the mean."""
    blocks: list[Pixels] = []
    for strip in strips:
        n = len(strip.samples)
        rows = _ink(strip.samples.reshape(n, -1))
        if strip.observed is not None:
            seen = _ink(strip.observed.reshape(1, -1))
            if strip.known is not None:
                seen[~strip.known.reshape(1, -1).cpu().numpy()] = _HIDDEN
            space = np.full_like(seen, 255)
            mean = _ink(strip.samples.reshape(n, -1).mean(0, keepdim=True))
            rows = np.concatenate([seen, space, rows, space, mean, space, space])
        elif strip.sequence:
            rows = np.concatenate([rows, np.full_like(rows[:1], 255)])
        blocks.append(rows)
    sheet = np.concatenate(blocks)
    factor = int(np.clip(512 // sheet.shape[1], 1, 16))
    return _enlarge(sheet, factor)


def _ink(bits: Tensor) -> Pixels:
    grey = np.rint(235 - 215 * bits.cpu().numpy().clip(0, 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


# ----------------------------------------------------------------------------------------- scatter


class _Frame:
    """A rectangle of the plane (corner [2], span [2]) drawn on a canvas with axes."""

    def __init__(self, points: NDArray[np.float64], same_unit: bool) -> None:
        low, high = points.min(axis=0), points.max(axis=0)
        span = np.maximum(high - low, 1e-6 + 1e-3 * np.abs(high))
        if same_unit:  # the same scale on both axes
            span = np.full_like(span, span.max())
        self.span = 1.1 * span
        self.corner = (low + high) / 2 - self.span / 2
        self.picture = Image.new("RGB", (_CANVAS, _CANVAS), _WHITE)
        self.draw = ImageDraw.Draw(self.picture)
        self._axes()

    def place(self, x: float, y: float) -> tuple[float, float]:
        right, up = (np.array([x, y]) - self.corner) / self.span
        side = _CANVAS - 2 * _MARGIN
        return _MARGIN + float(right) * side, _CANVAS - _MARGIN - float(up) * side

    def _axes(self) -> None:
        line, ink, end = (120, 120, 120), (60, 60, 60), _CANVAS - _MARGIN
        self.draw.rectangle((_MARGIN, _MARGIN, end, end), outline=line)
        for tick in _ticks(self.corner[0], self.span[0]):
            x, _ = self.place(tick, self.corner[1])
            self.draw.line((x, end, x, end + 5), fill=line)
            self.draw.text((x, end + 10), f"{tick:.4g}", fill=ink, anchor="ma")
        for tick in _ticks(self.corner[1], self.span[1]):
            _, y = self.place(self.corner[0], tick)
            self.draw.line((_MARGIN - 5, y, _MARGIN, y), fill=line)
            self.draw.text((_MARGIN - 8, y), f"{tick:.4g}", fill=ink, anchor="rm")


def _ticks(start: float, span: float) -> list[float]:
    """Choose 3 to 7 round numbers within [start, start + span]."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= 6)
    first, last = math.ceil(start / step), math.floor((start + span) / step)
    return [i * step for i in range(first, last + 1)]


def _scatter(strips: Sequence[Strip]) -> Image.Image:
    """Plot the first two elements of each sample, or a single element against sample number.

    The observation is a black cross, or a line if one of the two elements was observed.
    """
    clouds = [_plane(strip.samples) for strip in strips]
    single = strips[0].samples[0].numel() == 1
    frame = _Frame(np.concatenate(clouds), same_unit=not single)
    radius = 2 if sum(map(len, clouds)) > 200 else 3
    for i, cloud in enumerate(clouds):
        for point in cloud:
            x, y = frame.place(*point)
            box = (x - radius, y - radius, x + radius, y + radius)
            frame.draw.ellipse(box, fill=_COLOURS[i % len(_COLOURS)])
    for strip in strips:
        _mark(frame, strip, single)
    return frame.picture


def _plane(samples: Tensor) -> NDArray[np.float64]:
    flat = samples.reshape(len(samples), -1).double().cpu().numpy()
    if flat.shape[1] == 1:
        return np.column_stack([flat[:, 0], np.arange(len(flat), dtype=np.float64)])
    return np.ascontiguousarray(flat[:, :2])


def _mark(frame: _Frame, strip: Strip, single: bool) -> None:
    if strip.observed is None:
        return
    values = strip.observed.reshape(-1).tolist()
    known = [True] * len(values) if strip.known is None else strip.known.reshape(-1).tolist()
    first, second = (values[0], 0.0) if single else values[:2]
    x, y = frame.place(first, second)
    inside = _CANVAS - _MARGIN
    vertical, horizontal = known[0], not single and known[1]
    reach = 8.0 if vertical and horizontal else math.inf
    if vertical and _MARGIN <= x <= inside:
        ends = max(y - reach, _MARGIN), min(y + reach, inside)
        frame.draw.line((x, ends[0], x, ends[1]), fill=(0, 0, 0), width=2)
    if horizontal and _MARGIN <= y <= inside:
        ends = max(x - reach, _MARGIN), min(x + reach, inside)
        frame.draw.line((ends[0], y, ends[1], y), fill=(0, 0, 0), width=2)
