"""The answers of `models()` and `model(name)`: the served models and their facts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from noneq import display
from noneq.errors import UnreadableAnswer

T = TypeVar("T")


@dataclass(frozen=True)
class Classifier:
    """A classifier of a model's data.

    Attributes:
        name: the name to use in requests.
        labels: the classes, in order.
    """

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its name.
        kind: "number" or "category".
        labels: the categories; None of numbers.
        step: the distance of neighbouring numbers, 1 for integers; None for reals.
        low, high: the least and greatest number; None for no limit.
    """

    name: str
    kind: str
    labels: tuple[str, ...] | None = None
    step: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Model:
    """A served model.

    Attributes:
        name: the name to use in requests.
        kind: the kind of data: "image", "vector", "bits" or "table".
        shape: the shape of one example.
        process: the kind of process: "gaussian", "binomial" or "mixed".
        steps: T.
        network: the kind of network.
        parameters: number of weights.
        classifiers: the classifiers whose labels `posterior` accepts.
        columns: names of the elements of a vector or a table; None if they have none.
        table: the columns of a table; None for other data.
        samplers: the samplers that `sample` accepts; empty from an older service.
        conditional: whether its network can be told what was seen, for method "learned".
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    process: str
    steps: int
    network: str
    parameters: int
    classifiers: tuple[Classifier, ...]
    columns: tuple[str, ...] | None = field(default=None, kw_only=True)
    table: tuple[Column, ...] | None = field(default=None, kw_only=True)
    samplers: tuple[str, ...] = field(default=(), kw_only=True)
    conditional: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class ModelFacts(Model):
    """A model, with the contents of its artefact.

    Attributes:
        default_convention: the convention of the model's bounds.
        checksum: SHA-256 of the artefact's file; empty from an older service.
        artefact: process, network, data space, training.
        evaluation: measured bounds, with split and standard error.
        calibration: for each kind of observation that the network was told of in training, how its
            posteriors fare on held-out data; empty from an older service.
        certified: the families of observations that `auto` answers by `learned`.
        card: the model's description in Markdown; None if it has none.
    """

    default_convention: str
    checksum: str
    artefact: Mapping[str, Any] = field(repr=False)
    evaluation: tuple[Mapping[str, Any], ...] = field(repr=False)
    card: str | None = field(repr=False)
    calibration: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, kw_only=True)
    certified: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, kw_only=True)

    def _repr_markdown_(self) -> str | None:
        """Return the card for a notebook; its pictures, which are in its folder, are left out."""
        return None if self.card is None else re.sub(r"!\[[^]]*\]\([^)]*\)", "", self.card)


@dataclass(frozen=True)
class ModelChange:
    """What loading or unloading a model did.

    Attributes:
        name: of the model or classifier.
        checksum: SHA-256 of the file that is served now; None if none is.
        replaced: of the file that was served before; None if none was.
        seconds: how long it took.
    """

    name: str
    checksum: str | None
    replaced: str | None
    seconds: float


@dataclass(frozen=True)
class Models:
    """The models of a service.

    Attributes:
        models: the served models.
        default: the model for requests that name none; None if each has to name one.
        refused: files that could not be served: file, reason, fix.
    """

    models: tuple[Model, ...]
    default: str | None
    refused: tuple[Mapping[str, str], ...]

    def __len__(self) -> int:
        return len(self.models)

    def __iter__(self) -> Iterator[Model]:
        return iter(self.models)

    def __getitem__(self, name: str | int) -> Model:
        """Return a model by its name or its place."""
        if isinstance(name, int):
            return self.models[name]
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(f"{name}: the models are {', '.join(model.name for model in self)}")

    def _repr_html_(self) -> str:
        """Return a table for a notebook."""
        names = ("name", "kind", "shape", "process", "steps", "network", "parameters")
        rows = [[getattr(model, name) for name in names] for model in self]
        return display.table(names, rows, [])


def read_models(document: Mapping[str, Any]) -> Models:
    """Read the answer of GET /models."""
    models = tuple(_read_model(Model, one) for one in document.get("models", ()))
    return _read(Models, {**document, "models": models})


def read_change(document: Mapping[str, Any]) -> ModelChange:
    """Read the answer of POST /models/NAME/load and /unload."""
    return _read(ModelChange, document)


def read_model(document: Mapping[str, Any]) -> ModelFacts:
    """Read the answer of GET /models/NAME."""
    return _read_model(ModelFacts, {"checksum": "", **document})


def _read_model(kind: type[T], document: Mapping[str, Any]) -> T:
    """Read a model with its classifiers and columns."""
    classifiers = tuple(_read(Classifier, one) for one in document.get("classifiers", ()))
    table = read_columns(document.get("table"))
    return _read(kind, {**document, "classifiers": classifiers, "table": table})


def read_columns(found: Sequence[Mapping[str, Any]] | None) -> tuple[Column, ...] | None:
    """Read the columns of a table; None for other data."""
    return None if found is None else tuple(_read(Column, one) for one in found)


def _read(kind: type[T], document: Mapping[str, Any]) -> T:
    """Read a record of this kind, ignoring unknown members from a newer service."""
    known = fields(kind)  # type: ignore[arg-type]  # a dataclass
    needed = [one.name for one in known if one.default is MISSING]
    missing = [name for name in needed if name not in document]
    if missing:
        raise UnreadableAnswer(f"the answer lacks {', '.join(missing)}: is it a noneq service?")
    values = {one.name: document[one.name] for one in known if one.name in document}
    return kind(**{n: tuple(x) if isinstance(x, list) else x for n, x in values.items()})
