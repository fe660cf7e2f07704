"""The user's own pictures: those in a folder, as 8-bit [1 or 3, side, side] images.

    x_0 = the largest central square of a picture, scaled to `side` pixels

Files are read by the rules of `noneq.reading`; transparent parts become white. Unreadable files are
left out and reported. Pictures are split in the order of their pixels' sha256, so that adding one
moves few of the others. Pictures with the same pixels count once, so none is in two splits.
"""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from noneq.errors import FileError
from noneq.reading import folders, pictures
from noneq.reading.folders import Folder, Skipped
from training.data.dataset import DataError, Dataset, Shares, eight_bit

LEAST = 10  # pictures, so that no split is empty


class PicturesConfig(Shares):
    """The pictures in `folder` and its subfolders, in `colour` or grey."""

    kind: Literal["pictures"] = "pictures"
    folder: str
    side: int = Field(default=32, gt=1)
    colour: bool = True

    @override
    def load(self) -> Dataset:
        """Read the pictures and split them; uint8 [rows, 1 or 3, side, side].

        Raises:
            DataError: too few pictures can be read.
        """
        by_digest: dict[bytes, Tensor] = {}
        found = find(Path(self.folder))
        skipped = [*found.skipped, *(Skipped(table, "a table") for table in found.tables)]
        transparent = 0
        for path in found.pictures:
            try:
                picture = pictures.read(path)
            except FileError as error:
                # The cause does not name the file, so equal reasons are told together.
                why = error.__cause__ if isinstance(error.__cause__, FileError) else error
                skipped.append(Skipped(path, f"unreadable: {why}"))
                continue
            transparent += picture.alpha is not None
            pixels = square(picture, self.side, self.colour)
            by_digest.setdefault(hashlib.sha256(pixels.numpy().tobytes()).digest(), pixels)
        notes = list(filter(None, [folders.describe_skipped(skipped)]))
        if transparent:
            notes.append(f"{transparent} pictures are transparent in parts: these are put on white")
        if len(by_digest) < LEAST:
            raise DataError(
                f"{self.folder} holds {len(by_digest)} different pictures of {self.side} x "
                f"{self.side} pixels, and a model needs at least {LEAST}, better thousands"
                f"{''.join(f'; {note}' for note in notes)}"
            )
        digests = sorted(by_digest)
        rows = torch.stack([by_digest[digest] for digest in digests])
        test = max(2, round(self.test * len(rows)))  # one row gives no standard error
        held_out = test + max(1, round(self.valid * len(rows)))
        return Dataset(
            name=self.kind,
            space=eight_bit(tuple(rows.shape[1:])),
            train=rows[held_out:],
            valid=rows[test:held_out],
            test=rows[:test],
            checksum=f"sha256:{hashlib.sha256(b''.join(digests)).hexdigest()}",
            notes=tuple(notes),
        )


def find(folder: Path) -> Folder:
    """List the files in a folder and its subfolders; DataError if there are too few pictures."""
    try:
        found = folders.scan(folder)
    except FileError as error:
        raise DataError(str(error)) from error
    if len(found.pictures) < LEAST:
        table = f"; to fit to a table, name it ({found.tables[0]})" if found.tables else ""
        raise DataError(
            f"{folder} holds {len(found.pictures)} pictures ({', '.join(folders.PICTURES)}), and a "
            f"model needs at least {LEAST}, better thousands{table}"
        )
    return found


def square(picture: pictures.Picture, side: int, colour: bool) -> Tensor:
    """The central square of a picture, on white, scaled; uint8 [1 or 3, side, side]."""
    opaque = picture.on_white()
    levels = opaque.channels(3).transpose(1, 2, 0) if colour else opaque.grey()
    whole = Image.fromarray(np.ascontiguousarray(levels))
    fitted = ImageOps.fit(whole, (side, side), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(fitted))
    return pixels.movedim(-1, 0).contiguous() if colour else pixels[None]
