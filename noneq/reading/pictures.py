"""Reads picture files as arrays, as a viewer shows them.

A file of any format has to be grey, palette or RGB, with at most 8 bits per channel and one picture
per file, complete and undamaged; other files are refused with the reason. Pictures are rotated by
their EXIF orientation. Colour profiles are not applied.
"""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from noneq.errors import FileError, MissingExtra, no_pillow
from noneq.reading import png

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
MOST_PIXELS = 80_000_000

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr")
_FRAMED = ("GIF", "PNG", "TIFF", "WEBP")  # not JPEG, where phones put a preview beside the picture
_ORIENTATION, _TIFF_DEPTHS = 0x0112, 0x0102  # tags


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as a viewer shows it.

    Attributes:
        levels: uint8, [H, W] for a grey picture, else [H, W, 3].
        alpha: uint8 [H, W], from 0 (transparent) to 255 (opaque); None if all is opaque.
    """

    levels: Pixels
    alpha: Pixels | None = None

    @property
    def opaque(self) -> NDArray[np.bool_]:
        """Which pixels are fully opaque, [H, W]."""
        if self.alpha is None:
            return np.ones(self.levels.shape[:2], bool)
        return np.asarray(self.alpha == 255)

    @property
    def colourful(self) -> bool:
        """Whether any opaque pixel is not grey."""
        if self.levels.ndim == 2:
            return False
        coloured = (self.levels != self.levels[..., :1]).any(-1)
        return bool((coloured & self.opaque).any())

    def on_white(self) -> "Picture":
        """Blend the picture with a white background, as a page shows it."""
        if self.alpha is None:
            return self
        share = self.alpha.astype(np.uint16)
        if self.levels.ndim == 3:
            share = share[..., None]
        mixed = (self.levels * share + 255 * (255 - share) + 127) // 255
        return Picture(mixed.astype(np.uint8))

    def grey(self) -> Pixels:
        """Convert to ITU-R 601 luma [H, W], rounded as Pillow does."""
        if self.levels.ndim == 2:
            return self.levels
        weights = np.array([19595, 38470, 7471], np.uint32)  # of 2^16
        return ((self.levels @ weights + 0x8000) >> 16).astype(np.uint8)

    def channels(self, count: int) -> Pixels:
        """Convert to [1 or 3, H, W]; raise FileError for a colour picture as one channel."""
        if count == 1:
            if self.colourful:
                raise FileError(
                    "it is in colour, expected a grey picture: convert it to grey first"
                )
            return self.levels[None] if self.levels.ndim == 2 else self.levels[None, ..., 0]
        if self.levels.ndim == 2:
            return np.repeat(self.levels[None], count, axis=0)
        return np.moveaxis(self.levels, -1, 0)

    def white(self, black: str, white: str) -> NDArray[np.bool_]:
        """Find the white, opaque pixels [H, W] of a black and white picture.

        Raises:
            FileError: the picture has greys or colours; the message says what black and white mean.
        """
        level = self.channels(1)[0]
        other = (level != 0) & (level != 255) & self.opaque
        if other.any():
            raise FileError(
                f"it has greys ({level[other][0]}), expected black ({black}) and white ({white}): "
                "threshold it first"
            )
        return np.asarray((level == 255) & self.opaque)


def read(path: Path, size: tuple[int, int] | None = None) -> Picture:
    """Read a picture file; the errors are those of `decode`, with the file's name."""
    try:
        return decode(path.read_bytes(), size)
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror or error})") from error
    except FileError as error:
        raise FileError(f"{path} is no picture that can be used: {error}") from error


def decode(
    raw: bytes, size: tuple[int, int] | None = None, formats: tuple[str, ...] = FORMATS
) -> Picture:
    """Decode a picture file's bytes.

    Args:
        raw: the file's content, whose first bytes decide the format.
        size: the required width and height; checked before any pixel is decoded.
        formats: the accepted formats.

    Raises:
        FileError: the file has another format, is damaged, cut short, too large, of another size,
            animated, has more than 8 bits per channel, or is in CMYK.
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise no_pillow() from error
    if raw.startswith(png.SIGNATURE):
        head = png.header(raw)
        _check_size(head.width, head.height, size)
        _check_depth(head.depth)
        raw = png.checked(raw)
    try:
        with Image.open(BytesIO(raw), formats=formats) as image:
            _check(image, size)
            image.load()
            found = _levels(_upright(image))
    except (FileError, MissingExtra):
        raise
    except UnidentifiedImageError:
        raise FileError(f"it is no {' or '.join(formats)}, or damaged") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise FileError(f"it has more than {MOST_PIXELS:,} pixels: scale it first") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged bytes
        raise FileError(f"it is damaged or cut short ({error})") from error
    height, width = found.levels.shape[:2]
    if size is not None and (width, height) != size:
        raise _other_size(width, height, size)
    return found


def _check(image: "Image", size: tuple[int, int] | None) -> None:
    """Raise FileError if the header shows that the picture cannot be used."""
    _check_size(*image.size, size)
    count = getattr(image, "n_frames", 1) if image.format in _FRAMED else 1
    if count > 1:
        raise FileError(f"it is animated, or holds {count} pictures: save one of them")
    if image.mode.startswith(("I", "F")):
        _check_depth(16)
    if image.mode not in _MODES:
        raise FileError(f"its colours are {image.mode}: save it in RGB or in grey")
    if image.format == "TIFF":
        depths: Any = getattr(image, "tag_v2", {}).get(_TIFF_DEPTHS, 8)
        _check_depth(max(depths) if isinstance(depths, tuple) else depths)
    if image.format == "PPM":
        levels = [n for tile in image.tile for n in tile[3] if isinstance(n, int)]  # type: ignore[attr-defined]
        _check_depth(max(levels, default=255).bit_length())


def _check_size(width: int, height: int, size: tuple[int, int] | None) -> None:
    if size is not None and sorted(size) != sorted((width, height)):  # it may be rotated later
        raise _other_size(width, height, size)
    if width * height > MOST_PIXELS:
        raise FileError(
            f"it has {width} x {height} pixels, more than {MOST_PIXELS:,}: scale it first"
        )


def _other_size(width: int, height: int, size: tuple[int, int]) -> FileError:
    received, expected = f"{width} x {height} pixels (width x height)", f"{size[0]} x {size[1]}"
    text = f"it has {received}, expected {expected}: crop or scale it first"
    return FileError(text, received=received, expected=expected)


def _check_depth(bits: int) -> None:
    if bits > 8:
        raise FileError("it has more than 8 bits a channel: save it in 8")


def _upright(image: "Image") -> "Image":
    """Rotate a picture by its EXIF orientation, ignoring unreadable EXIF, as viewers do."""
    from PIL.Image import Transpose

    turns = (
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:
        orientation = None
    if isinstance(orientation, int) and 2 <= orientation <= 8:
        return image.transpose(turns[orientation - 2])
    return image


def _levels(image: "Image") -> Picture:
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        alpha = rgba[..., 3]
        return Picture(rgba[..., :3], None if bool((alpha == 255).all()) else alpha)
    return Picture(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")))
