"""What is served: a model at a glance, and everything its artefact says."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from noneq.errors import UnreadableAnswer

Record = TypeVar("Record")


@dataclass(frozen=True)
class Classifier:
    """Who reads labels of a model's data.

    Attributes:
        name: by which it is asked.
        labels: what it tells apart, in order.
    """

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A model that answers.

    Attributes:
        name: by which it is asked.
        kind: of its data: "image", "vector" or "bits".
        shape: of one example.
        process: "gaussian" or "binomial".
        steps: T.
        network: its kind.
        parameters: how many weights it has.
        classifiers: whose labels `posterior` may ask for.
        columns: names of a vector's elements; None where they have none.
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


@dataclass(frozen=True)
class ModelFacts(Model):
    """A model, with what its artefact says.

    Attributes:
        default_convention: of its bounds.
        checksum: of the artefact's file; empty where the service is of an earlier version.
        artefact: process, network, data space, training.
        evaluation: measured bounds, with split and standard error.
        card: Markdown for people; None where there is none.
    """

    default_convention: str
    checksum: str
    artefact: Mapping[str, Any] = field(repr=False)
    evaluation: tuple[Mapping[str, Any], ...] = field(repr=False)
    card: str | None = field(repr=False)


@dataclass(frozen=True)
class Models:
    """What a service serves.

    Attributes:
        models: each at a glance.
        default: serves requests that name none; None where each has to name one.
        refused: files that are not served: file, reason, fix.
    """

    models: tuple[Model, ...]
    default: str | None
    refused: tuple[Mapping[str, str], ...]


def read_models(document: Mapping[str, Any]) -> Models:
    """The answer of GET /models."""
    models = tuple(_model(Model, one) for one in document.get("models", ()))
    return _record(Models, {**document, "models": models})


def read_model(document: Mapping[str, Any]) -> ModelFacts:
    """The answer of GET /models/NAME."""
    return _model(ModelFacts, {"checksum": "", **document})


def _model(kind: type[Record], document: Mapping[str, Any]) -> Record:
    """A model with its classifiers."""
    readers = tuple(_record(Classifier, one) for one in document.get("classifiers", ()))
    return _record(kind, {**document, "classifiers": readers})


def _record(kind: type[Record], document: Mapping[str, Any]) -> Record:
    """What it knows of a document; members of a later version are left out."""
    known = fields(kind)  # type: ignore[arg-type]  # a dataclass
    needed = [one.name for one in known if one.default is MISSING]
    missing = [name for name in needed if name not in document]
    if missing:
        raise UnreadableAnswer(f"the answer lacks {', '.join(missing)}: is it a noneq service?")
    values = {one.name: document[one.name] for one in known if one.name in document}
    return kind(**{n: tuple(x) if isinstance(x, list) else x for n, x in values.items()})
