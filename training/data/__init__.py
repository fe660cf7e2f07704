"""The data sets; each is loaded by its configuration.

To add one, write a module with a `DataSetConfig`, and add that to `AnyConfig`.
"""

from typing import Annotated

from pydantic import Field

from training.data.binarized_mnist import BinarizedMnistConfig
from training.data.cifar10 import Cifar10Config
from training.data.dataset import SPLITS, DataError, Dataset, DataSetConfig, Split
from training.data.dead_leaves import DeadLeavesConfig
from training.data.heartbeat import HeartbeatConfig
from training.data.mnist import MnistConfig
from training.data.pictures import PicturesConfig
from training.data.swissroll import SwissRollConfig
from training.data.table import TableConfig
from training.data.textures import TexturesConfig
from training.data.weather import WeatherConfig

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
    | WeatherConfig
)
DataConfig = Annotated[AnyConfig, Field(discriminator="kind")]


def load(config: DataSetConfig) -> Dataset:
    """Load the data set that `config` describes.

    Raises:
        DataError: a file cannot be found or downloaded, or its contents are wrong.
    """
    return config.load()


__all__ = [
    "SPLITS",
    "BinarizedMnistConfig",
    "Cifar10Config",
    "DataConfig",
    "DataError",
    "DataSetConfig",
    "Dataset",
    "HeartbeatConfig",
    "MnistConfig",
    "PicturesConfig",
    "Split",
    "SwissRollConfig",
    "TableConfig",
    "TexturesConfig",
    "WeatherConfig",
    "load",
]
