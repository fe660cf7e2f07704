"""Textures: grey 8-bit patches, [1, side, side], of the pictures in a folder.

    picture ~ U{pictures},   corner ~ U{positions where the patch lies within the split's region}

Each picture is cut into three bands of rows: the top is `train`, the middle `valid`, the bottom
`test`, so no pixel is in two splits. Patches of one split overlap, so they are not independent, and
standard errors over them are too small.

Source: patches of one texture as in Sohl-Dickstein et al. (2015), Section 3.2.4, whose picture was
the bark of Lazebnik et al. (2005).
"""

import hashlib
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from diffusion.noise import Stream, counter_noise
from noneq.errors import FileError
from noneq.reading import folders, pictures
from training.data.dataset import DataError, Dataset, DataSetConfig, Split, eight_bit, split_seed
from training.data.files import local_folder


class TexturesConfig(DataSetConfig):
    """Patches of `side` pixels from the pictures of `folder` (a folder in NONEQ_DATA).

    `pictures` names the files to use, () for all; `held_out` holds the shares of a picture's rows
    for `valid` and `test`.
    """

    kind: Literal["textures"] = "textures"
    folder: str = "textures"
    pictures: tuple[str, ...] = ()
    side: int = Field(default=32, gt=1)
    held_out: tuple[float, float] = (0.1, 0.2)
    train: int = Field(default=50_000, gt=0)
    valid: int = Field(default=2_000, gt=0)
    test: int = Field(default=5_000, gt=0)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if min(self.held_out) <= 0 or sum(self.held_out) >= 1:
            raise ValueError(
                f"held_out must be two shares above 0 with sum below 1, got {self.held_out}"
            )
        return self

    @override
    def load(self) -> Dataset:
        """Read the pictures and draw the three splits; uint8 [rows, 1, side, side].

        Raises:
            DataError: a picture is missing, unreadable or too small.
        """
        paths = find(self)
        pictures = [read(path) for path in paths]
        digest = hashlib.sha256()
        for picture in pictures:
            digest.update(f"{tuple(picture.shape)}".encode() + picture.numpy().tobytes())

        def rows(split: Split, count: int) -> Tensor:
            regions = [p[bands(p.shape[0], self.held_out)[split]] for p in pictures]
            for path, region in zip(paths, regions, strict=True):
                if min(region.shape) < self.side:
                    raise DataError(
                        f"{path.name}: {split} has {region.shape[0]} rows and {region.shape[1]} "
                        f"columns of it, a patch needs {self.side} of each; raise held_out, "
                        "or reduce side"
                    )
            return patches(regions, self.side, torch.arange(count), split_seed(self.seed, split))

        return Dataset(
            name=self.kind,
            space=eight_bit((1, self.side, self.side)),
            train=rows("train", self.train),
            valid=rows("valid", self.valid),
            test=rows("test", self.test),
            checksum=f"sha256:{digest.hexdigest()}",
        )


def bands(height: int, held_out: tuple[float, float]) -> dict[Split, slice]:
    """The rows of each split in a picture `height` pixels high."""
    valid, test = (round(height * (1 - share)) for share in (sum(held_out), held_out[1]))
    return {"train": slice(0, valid), "valid": slice(valid, test), "test": slice(test, height)}


def find(config: TexturesConfig) -> list[Path]:
    """Paths of the pictures: those configured, or all in the folder.

    Raises:
        DataError: the folder or a picture does not exist.
    """
    folder = local_folder(config.folder)
    found = folders.scan(folder).pictures
    if config.pictures:
        by_name = {path.name: path for path in found}
        missing = [name for name in config.pictures if name not in by_name]
        if missing:
            there = ", ".join(by_name) or "no pictures"
            raise DataError(f"{folder} has no {', '.join(missing)}; it has {there}")
        return [by_name[name] for name in config.pictures]
    if not found:
        raise DataError(f"{folder} has no pictures: put some there ({', '.join(folders.PICTURES)})")
    return found


def read(path: Path) -> Tensor:
    """Read a picture in grey, with transparent parts white, uint8 [height, width].

    Raises:
        DataError: `noneq.reading.pictures` cannot read it.
    """
    try:
        return torch.from_numpy(pictures.read(path).on_white().grey().copy())
    except FileError as error:
        raise DataError(str(error)) from error


def patches(regions: list[Tensor], side: int, rows: Tensor, seed: int) -> Tensor:
    """Draw the patches numbered `rows` (int64 [N]), uint8 [N, 1, side, side].

    A patch depends only on the regions, the seed and its number.
    """
    u = counter_noise(seed, rows, 0, Stream.DATA).uniform((3,)).double()
    which = (u[:, 0] * len(regions)).long()
    places = torch.tensor([[r.shape[0] - side + 1, r.shape[1] - side + 1] for r in regions])
    corner = (u[:, 1:] * places[which]).long()
    out = torch.empty(len(rows), 1, side, side, dtype=torch.uint8)
    for index, region in enumerate(regions):
        mine = which == index
        windows = region.unfold(0, side, 1).unfold(1, side, 1)
        out[mine, 0] = windows[corner[mine, 0], corner[mine, 1]]
    return out
