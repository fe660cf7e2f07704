"""Pictures of one's own: every picture in a folder, whole; 8-bit, [1 or 3, side, side].

    x_0 = the largest square in the middle of a picture, scaled to `side` pixels

A split is decided by the pixels themselves (their sha256, in order), so that a new picture moves
few of the others. Pictures that become the same pixels count once: none is in two splits.
"""

import hashlib
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from pydantic import Field
from torch import Tensor

from training.data.dataset import DataError, Dataset, eight_bit
from training.data.images import SUFFIXES, opened
from training.data.shares import Shares

LEAST = 10  # pictures, that each split has some


class PicturesConfig(Shares):
    """The pictures below `folder`, in `colour` or grey.

    `valid` and `test` are shares of them.
    """

    kind: Literal["pictures"] = "pictures"
    folder: str
    side: int = Field(default=32, gt=1)
    colour: bool = True


def find(folder: Path) -> list[Path]:
    """The pictures below a folder, in the order of their names; DataError where there are few."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found) < LEAST:
        raise DataError(
            f"{folder} holds {len(found)} pictures ({', '.join(sorted(SUFFIXES))}), and a model "
            f"needs at least {LEAST}, better thousands"
        )
    return found


def read(path: Path, side: int, colour: bool) -> Tensor:
    """A picture, uint8 [1 or 3, side, side]; DataError as `images.opened`."""
    whole = opened(path, "RGB" if colour else "L")
    square = ImageOps.fit(whole, (side, side), Image.Resampling.BOX)
    pixels = torch.from_numpy(np.array(square))
    return pixels.movedim(-1, 0).contiguous() if colour else pixels[None]


def load(config: PicturesConfig) -> Dataset:
    """Read the pictures and part them; uint8 [rows, 1 or 3, side, side].

    Raises:
        DataError: too few, or one that cannot be read.
    """
    by_digest: dict[bytes, Tensor] = {}
    for path in find(Path(config.folder)):
        pixels = read(path, config.side, config.colour)
        by_digest.setdefault(hashlib.sha256(pixels.numpy().tobytes()).digest(), pixels)
    if len(by_digest) < LEAST:
        raise DataError(
            f"{config.folder} holds {len(by_digest)} different pictures of {config.side} x "
            f"{config.side} pixels, and a model needs at least {LEAST}, better thousands"
        )
    digests = sorted(by_digest)
    rows = torch.stack([by_digest[digest] for digest in digests])
    test = max(2, round(config.test * len(rows)))  # of one row the error is not known
    held_out = test + max(1, round(config.valid * len(rows)))
    return Dataset(
        name=config.kind,
        space=eight_bit(tuple(rows.shape[1:])),
        train=rows[held_out:],
        valid=rows[test:held_out],
        test=rows[:test],
        checksum=f"sha256:{hashlib.sha256(b''.join(digests)).hexdigest()}",
    )
