"""The heartbeat: binary sequences with a one in every fifth place, from a random start.

    phase ~ U{0, ..., period - 1},   x_0[i] = 1 if i = phase (mod period) else 0

With 20 bits and period 5 there are 5 sequences, the entropy is log2 5 = 2.322 bits, and the
fraction of ones is 1 / period = 0.2, the base rate to use for the binomial process.
Source: Sohl-Dickstein et al. 2015, Section 3.1.2.
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.space import DataSpace
from training.data.dataset import Dataset, DataSetConfig, Split, checksum, generator


class HeartbeatConfig(DataSetConfig):
    """Sequences of `bits` bits with a one in every `period`-th place."""

    kind: Literal["heartbeat"] = "heartbeat"
    bits: int = Field(default=20, gt=1)
    period: int = Field(default=5, gt=1)
    train: int = Field(default=10_000, gt=0)
    valid: int = Field(default=1_000, gt=0)
    test: int = Field(default=10_000, gt=0)
    seed: int = Field(default=0, ge=0)

    @override
    def load(self) -> Dataset:
        """Draw the three splits; float32 [rows, bits] of 0 and 1."""
        table = patterns(self.bits, self.period)

        def rows(split: Split, count: int) -> Tensor:
            stream = generator(self.seed, split)
            return table[torch.randint(self.period, (count,), generator=stream)]

        def log_probability(x: Tensor) -> Tensor:
            found = (x[:, None, :] == table).all(dim=-1).any(dim=-1)
            return torch.where(found, -math.log(self.period), -math.inf)

        train, valid = rows("train", self.train), rows("valid", self.valid)
        test = rows("test", self.test)
        return Dataset(
            name=self.kind,
            space=DataSpace(kind="bits", shape=(self.bits,), shift=0.0, scale=1.0, levels=None),
            train=train,
            valid=valid,
            test=test,
            checksum=checksum(train, valid, test),
            entropy=(math.log(self.period), 0.0),
            log_density=log_probability,
        )


def patterns(bits: int, period: int) -> Tensor:
    """All the sequences, one per phase, float32 [period, bits]."""
    place = torch.arange(bits)
    return torch.stack([(place % period == phase).float() for phase in range(period)])
