"""What `models()` and `model(name)` answer: the served models and their facts."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from noneq.errors import UnreadableAnswer

T = TypeVar("T")


@dataclass(frozen=True)
class Classifier:
    """A classifier that reads labels of a model's data.

    Attributes:
        name: to request it by.
        labels: its classes, in order.
    """

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A served model.

    Attributes:
        name: to request it by.
        kind: of its data: "image", "vector" or "bits".
        shape: of one example.
        process: "gaussian" or "binomial".
        steps: T.
        network: its kind.
        parameters: number of weights.
        classifiers: whose labels `posterior` takes.
        columns: names of a vector's elements; None if they have none.
        samplers: that `sample` accepts; empty if the service is of an earlier version.
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
    samplers: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class ModelFacts(Model):
    """A model, with the contents of its artefact.

    Attributes:
        default_convention: of its bounds.
        checksum: of the artefact's file; empty if the service is of an earlier version.
        artefact: process, network, data space, training.
        evaluation: measured bounds, with split and standard error.
        card: its description in Markdown; None if there is none.
    """

    default_convention: str
    checksum: str
    artefact: Mapping[str, Any] = field(repr=False)
    evaluation: tuple[Mapping[str, Any], ...] = field(repr=False)
    card: str | None = field(repr=False)


@dataclass(frozen=True)
class Models:
    """The models of a service.

    Attributes:
        models: that are served.
        default: answers requests that name no model; None if each has to name one.
        refused: files that could not be served: file, reason, fix.
    """

    models: tuple[Model, ...]
    default: str | None
    refused: tuple[Mapping[str, str], ...]


def read_models(document: Mapping[str, Any]) -> Models:
    """The answer of GET /models."""
    models = tuple(_read_model(Model, one) for one in document.get("models", ()))
    return _read(Models, {**document, "models": models})


def read_model(document: Mapping[str, Any]) -> ModelFacts:
    """The answer of GET /models/NAME."""
    return _read_model(ModelFacts, {"checksum": "", **document})


def _read_model(kind: type[T], document: Mapping[str, Any]) -> T:
    """A model with its classifiers."""
    classifiers = tuple(_read(Classifier, one) for one in document.get("classifiers", ()))
    return _read(kind, {**document, "classifiers": classifiers})


def _read(kind: type[T], document: Mapping[str, Any]) -> T:
    """A record of this kind; unknown members, of a later version, are ignored."""
    known = fields(kind)  # type: ignore[arg-type]  # a dataclass
    needed = [one.name for one in known if one.default is MISSING]
    missing = [name for name in needed if name not in document]
    if missing:
        raise UnreadableAnswer(f"the answer lacks {', '.join(missing)}: is it a noneq service?")
    values = {one.name: document[one.name] for one in known if one.name in document}
    return kind(**{n: tuple(x) if isinstance(x, list) else x for n, x in values.items()})
