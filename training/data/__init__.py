"""Data sets by kind: `load(config)` gives the Dataset that a configuration describes."""

from typing import Annotated

from pydantic import Field

from training.data import (
    binarized_mnist,
    cifar10,
    dead_leaves,
    heartbeat,
    mnist,
    pictures,
    swissroll,
    table,
    textures,
)
from training.data.binarized_mnist import BinarizedMnistConfig
from training.data.cifar10 import Cifar10Config
from training.data.dataset import SPLITS, DataError, Dataset, Split
from training.data.dead_leaves import DeadLeavesConfig
from training.data.heartbeat import HeartbeatConfig
from training.data.mnist import MnistConfig
from training.data.pictures import PicturesConfig
from training.data.swissroll import SwissRollConfig
from training.data.table import TableConfig
from training.data.textures import TexturesConfig

AnyConfig = (
    SwissRollConfig
    | HeartbeatConfig
    | DeadLeavesConfig
    | MnistConfig
    | BinarizedMnistConfig
    | Cifar10Config
    | TexturesConfig
    | PicturesConfig
    | TableConfig
)
DataConfig = Annotated[AnyConfig, Field(discriminator="kind")]


def load(config: AnyConfig) -> Dataset:
    """The data set that `config` describes, its three splits in data units.

    Raises:
        DataError: files that cannot be found, downloaded or believed.
    """
    match config:
        case SwissRollConfig():
            return swissroll.load(config)
        case HeartbeatConfig():
            return heartbeat.load(config)
        case DeadLeavesConfig():
            return dead_leaves.load(config)
        case MnistConfig():
            return mnist.load(config)
        case BinarizedMnistConfig():
            return binarized_mnist.load(config)
        case Cifar10Config():
            return cifar10.load(config)
        case TexturesConfig():
            return textures.load(config)
        case PicturesConfig():
            return pictures.load(config)
        case TableConfig():
            return table.load(config)


__all__ = [
    "SPLITS",
    "BinarizedMnistConfig",
    "Cifar10Config",
    "DataConfig",
    "DataError",
    "Dataset",
    "DeadLeavesConfig",
    "HeartbeatConfig",
    "MnistConfig",
    "PicturesConfig",
    "Split",
    "SwissRollConfig",
    "TableConfig",
    "TexturesConfig",
    "load",
]
