"""The contents of a converted source: all an artefact needs, and the network's tensors."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from diffusion.checkpoint import Metadata, Provenance
from diffusion.model import DiffusionModel
from diffusion.networks import UNetConfig
from diffusion.process import GaussianConfig, PredictionKind, VarianceKind
from diffusion.schedule import Schedule, TableSchedule
from diffusion.space import DataSpace


class ConvertError(ValueError):
    """A source cannot be converted; the message says what was found and why not."""


@dataclass(frozen=True)
class Found:
    """The contents of a source, in this project's terms.

    Attributes:
        library: the library that wrote it.
        title: one-line description.
        network: configuration of the network.
        schedule: schedule of the process.
        T: number of steps.
        table: beta, float64 [T + 1], if the schedule is a table; else None.
        prediction, variance: what the network's output means.
        space: the data space.
        tensors: the network's tensors, float32, by our names.
        files: sha256 of each file that was read.
        documents: the source's own settings.
        notes: sampler settings that an artefact does not keep.
    """

    library: Literal["diffusers", "openai"]
    title: str
    network: UNetConfig
    schedule: Schedule
    T: int
    table: Tensor | None
    prediction: PredictionKind
    variance: VarianceKind
    space: DataSpace
    tensors: Mapping[str, Tensor]
    files: dict[str, str]
    documents: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = field(default=())

    def build(self, name: str, training: Provenance) -> tuple[DiffusionModel, Metadata]:
        """Build the model with the source's weights, in evaluation mode, and its metadata.

        Raises:
            ValueError: the parts are inconsistent.
        """
        metadata = Metadata(
            name=name,
            process=GaussianConfig(T=self.T, schedule=self.schedule),
            network=self.network,
            prediction=self.prediction,
            variance=self.variance,
            space=self.space,
            training=training,
        )
        model = metadata.build()
        model.network.load_state_dict(self.tensors)
        if isinstance(self.schedule, TableSchedule):
            assert self.table is not None  # a table schedule comes with its table
            model.process.take(self.table)
        model.process.check_signal(self.prediction)
        return model.eval().requires_grad_(False), metadata


def pixels(channels: int, size: tuple[int, int], levels: int) -> DataSpace:
    """The space of images with levels 0..levels - 1, scaled to -1..1 for the network."""
    half = (levels - 1) / 2
    shape = (channels, *size)
    return DataSpace(kind="image", shape=shape, shift=half, scale=half, levels=levels)


def named(names: Iterable[str], most: int = 6) -> str:
    """The first `most` names as text, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def take(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    """Raise ConvertError unless `tensors` are exactly the wanted ones, by name and shape.

    Args:
        tensors: the source's tensors, by its names.
        wanted: tensors of the required shapes, by the same names.
        where: the file, for the message.
    """
    missing, foreign = wanted.keys() - tensors.keys(), tensors.keys() - wanted.keys()
    if missing:
        raise ConvertError(
            f"{where}: the network that its settings describe needs tensors that are not there: "
            f"{named(missing)}"
            + (f"; and there are others, {named(foreign)}" if foreign else "")
            + ": give the settings that it was trained with"
        )
    if foreign:
        raise ConvertError(
            f"{where}: the network that its settings describe has no place for {named(foreign)}, "
            "and no tensor may be dropped: it has other settings, or is another network"
        )
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise ConvertError(
                f"{where}: tensor {name} has shape {list(tensors[name].shape)}, the network that "
                f"its settings describe needs {list(tensor.shape)}: give the settings that it was "
                "trained with"
            )
