"""The interface of all data sets: three disjoint splits of rows in data units, and a checksum.

    x_0 ~ q(x_0),        tensors of shape [rows, *event]

A row is one example. A model is fitted to `train` and monitored on `valid`; results are reported on
`test`.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from diffusion.space import DataSpace
from diffusion.table import AnySpace

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


def eight_bit(shape: tuple[int, ...]) -> DataSpace:
    """The space of 8-bit images [C, H, W]: model units are (level - 127.5) / 128.

    With a scale of 128 the period of sin(2^8 pi x) is exactly one grey level, so a network with
    this feature (UNetConfig.fourier) can read off how far x is from a level.
    """
    return DataSpace(kind="image", shape=shape, shift=127.5, scale=128.0, levels=256)


class DataError(ValueError):
    """Data are unavailable or not as expected; the message says how to fix it."""


@dataclass(frozen=True)
class Dataset:
    """A data set, held in memory.

    Args:
        name: the `kind` of its configuration.
        space: kind, shape, and the affine map to model units.
        train, valid, test: rows in data units, [rows, *space.shape]; 8-bit images stay `uint8`.
        checksum: sha256 of the rows (generated data) or of the files they came from.
        entropy: the data's entropy per example, if known: (nats, standard error).
        log_density: exact log-density (or log-probability) in nats of rows in data units, if known.
        notes: sentences on what was left out of the source files, or changed.
        groups: of the rows of `train`, then `valid`: those of one group are alike, and no other
            split has rows of it, int64; None if rows are independent.
    """

    name: str
    space: AnySpace
    train: Tensor
    valid: Tensor
    test: Tensor
    checksum: str
    entropy: tuple[float, float] | None = None
    log_density: Callable[[Tensor], Tensor] | None = None
    notes: tuple[str, ...] = ()
    groups: Tensor | None = None

    def split(self, name: Split) -> Tensor:
        """Rows of one split, [rows, *event], in data units."""
        if name not in SPLITS:
            raise DataError(f"no split named {name!r}; the splits are {', '.join(SPLITS)}")
        rows: Tensor = getattr(self, name)
        return rows


class DataSetConfig(BaseModel):
    """Base class of data set configurations; `kind` tells the subclasses apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @abstractmethod
    def load(self) -> Dataset:
        """Load the data set.

        Raises:
            DataError: a file cannot be found or downloaded, or its contents are wrong.
        """


class Shares(DataSetConfig):
    """A user's own data: `valid` and `test` are shares of all rows; the rest is `train`."""

    valid: float = Field(default=0.05, gt=0)
    test: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(
                f"the shares valid and test must leave some rows for train, got {self.valid} and "
                f"{self.test}"
            )
        return self


def split_seed(seed: int, split: Split) -> int:
    """The seed of one split: the first 63 bits of sha256("seed/split").

    The splits' streams are independent, however many rows each draws.
    """
    digest = hashlib.sha256(f"{seed}/{split}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, split: Split) -> torch.Generator:
    """A random generator for one split."""
    return torch.Generator().manual_seed(split_seed(seed, split))


def checksum(*tensors: Tensor) -> str:
    """The sha256 of the tensors' bytes, in order, as `sha256:...`."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def stream_seed(seed: int, purpose: str, index: int) -> int:
    """A separate seed for each (seed, purpose, index): 63 bits of their sha256."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
