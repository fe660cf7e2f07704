"""Picture files of one's own: which files are pictures, and one of them opened."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from training.data.dataset import DataError

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm"}


def opened(path: Path, mode: str) -> Image.Image:
    """A picture of 8 bits a channel, in Pillow's mode "L" (ITU-R 601 luma) or "RGB".

    Raises:
        DataError: it is no picture, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path} has more than 8 bits a pixel (mode {picture.mode}); save it in 8"
                )
            return picture.convert(mode)
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path} is no picture that can be read ({error})") from error
