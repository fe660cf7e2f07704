"""Data sets by kind: `load(config)` gives the Dataset that a configuration describes."""

from typing import Annotated

from pydantic import Field

from training.data import binarized_mnist, cifar10, heartbeat, mnist, swissroll
from training.data.binarized_mnist import BinarizedMnistConfig
from training.data.cifar10 import Cifar10Config
from training.data.dataset import SPLITS, DataError, Dataset, Split
from training.data.heartbeat import HeartbeatConfig
from training.data.mnist import MnistConfig
from training.data.swissroll import SwissRollConfig

DataConfig = Annotated[
    SwissRollConfig | HeartbeatConfig | MnistConfig | BinarizedMnistConfig | Cifar10Config,
    Field(discriminator="kind"),
]


def load(config: DataConfig) -> Dataset:
    """The data set that `config` describes, its three splits in data units.

    Raises:
        DataError: files that cannot be found, downloaded or believed.
    """
    match config:
        case SwissRollConfig():
            return swissroll.load(config)
        case HeartbeatConfig():
            return heartbeat.load(config)
        case MnistConfig():
            return mnist.load(config)
        case BinarizedMnistConfig():
            return binarized_mnist.load(config)
        case Cifar10Config():
            return cifar10.load(config)


__all__ = [
    "SPLITS",
    "BinarizedMnistConfig",
    "Cifar10Config",
    "DataConfig",
    "DataError",
    "Dataset",
    "HeartbeatConfig",
    "MnistConfig",
    "Split",
    "SwissRollConfig",
    "load",
]
