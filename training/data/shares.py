"""Which share of one's own data is held out."""

from typing import Self

from pydantic import Field, model_validator

from training.data.dataset import DataSetConfig


class Shares(DataSetConfig):
    """`valid` and `test` as shares of all data; the rest is `train`."""

    valid: float = Field(default=0.05, gt=0)
    test: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(
                f"valid and test are shares that leave some for train, came {self.valid} and "
                f"{self.test}"
            )
        return self
