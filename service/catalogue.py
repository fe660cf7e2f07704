"""Loads the models folder: NAME/model.safetensors, each served under its folder's name.

Classifiers live in the same folder. They are not listed as models, but used in posteriors of the
models they fit. A file that cannot be served is listed with the reason and the fix; the others are
served all the same.
"""

import hashlib
import logging
import stat
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from diffusion import heldout
from diffusion.artefact import ArtefactError, kind_of
from diffusion.checkpoint import Metadata, load
from diffusion.classifier import Classifier
from diffusion.classifier import load as load_classifier
from diffusion.likelihood import reference
from diffusion.likelihood.reference import Reference
from diffusion.model import DiffusionModel
from diffusion.space import Space

_log = logging.getLogger(__name__)

FILE = "model.safetensors"
CARD = "README.md"
_LONGEST_CARD = 1_000_000  # bytes; a card is text for people


@dataclass(frozen=True)
class ServedClassifier:
    """A classifier for the posteriors of served models.

    Attributes:
        name: its folder's.
        classifier: on the models' device, as a factor of posteriors.
        host: the same on the CPU, to classify samples.
    """

    name: str
    classifier: Classifier
    host: Classifier

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, in order."""
        return self.classifier.labels

    def fits(self, model: DiffusionModel) -> bool:
        """Whether the classifier was trained on that model's kind of data and process."""
        try:
            self.classifier.check(model.process, model.space)
        except ValueError:
            return False
        return True


@dataclass(frozen=True)
class Served:
    """A served model: its network and the contents of its artefact.

    Attributes:
        name: its folder's.
        model: the model, on its device.
        metadata: the artefact's metadata.
        checksum: SHA-256 of the artefact's file, in hexadecimal.
        card: the model's README, Markdown.
        classifiers: the classifiers that fit the model.
        examples: held-out data [N, *event], data units; N may be 0.
        reference: terms of the bound of held-out data, for comparison; None if unknown.
    """

    name: str
    model: DiffusionModel
    metadata: Metadata
    checksum: str
    card: str | None = None
    classifiers: tuple[ServedClassifier, ...] = ()
    examples: Tensor = field(default_factory=lambda: torch.zeros(0))
    reference: Reference | None = None


@dataclass(frozen=True)
class Refused:
    """A file that is not served, and why."""

    file: str
    reason: str
    fix: str


@dataclass(frozen=True)
class Catalogue:
    """The contents of a models folder.

    Attributes:
        served: by name, in alphabetical order.
        refused: the files that are not served.
        default: the model for requests that name none; None if every request has to name one.
        classifiers: by name, in alphabetical order.
    """

    served: Mapping[str, Served] = field(default_factory=dict)
    refused: tuple[Refused, ...] = ()
    default: str | None = None
    classifiers: Mapping[str, ServedClassifier] = field(default_factory=dict)


def load_folder(folder: Path, device: str, default: str | None = None) -> Catalogue:
    """Load every `*/model.safetensors` of a folder; treat a missing folder as empty."""
    served: dict[str, Served] = {}
    classifiers: dict[str, ServedClassifier] = {}
    refused: list[Refused] = []
    files = find_files(folder)
    if not files:
        _log.warning("no %s/*/%s: nothing to serve", folder, FILE)
    for path in files:
        name = path.parent.name
        try:
            _check_file(path)
            if kind_of(path) == "classifier":
                classifier, _ = load_classifier(path, device)
                host = deepcopy(classifier).cpu()
                classifiers[name] = ServedClassifier(name, classifier, host)
                continue
            model, metadata = load(path, device)
            with path.open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
        except (ArtefactError, OSError) as error:
            refused.append(_refuse(path, folder, error))
            continue
        except Exception as error:  # a hostile file must not keep the others from being served
            _log.exception("loading %s failed", path)
            refused.append(_refuse(path, folder, error))
            continue
        served[name] = Served(
            name,
            model,
            metadata,
            checksum,
            _card(path.parent),
            examples=_examples(path.parent, model.space),
            reference=_reference(path.parent, model),
        )
    for name, found in served.items():
        fitting = tuple(each for each in classifiers.values() if each.fits(found.model))
        served[name] = replace(found, classifiers=fitting)
    if default is not None and default not in served:
        _log.error(
            "NONEQ_DEFAULT_MODEL=%s is not among the served models (%s): requests have to name one",
            default,
            ", ".join(served) or "none",
        )
        default = None
    if default is None and len(served) == 1:
        default = next(iter(served))
    return Catalogue(served, tuple(refused), default, classifiers)


def find_files(folder: Path) -> list[Path]:
    """List every NAME/model.safetensors, sorted, including those that cannot be read.

    Raises:
        OSError: the folder cannot be read.
    """
    try:
        below = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path / FILE for path in below if _is_there(path / FILE)]


def _is_there(path: Path) -> bool:
    """Whether the name exists, even as a broken link or in a folder that cannot be read."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return path.parent.is_symlink() and not path.parent.exists()
    except OSError:
        return True
    return True


_KINDS = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def _check_file(path: Path) -> None:
    """Raise ArtefactError unless it is a readable file; a pipe would never end."""
    fix = "put the artefact itself there, readable for the service's user"
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise ArtefactError(f"{path}: it is a {_KINDS.get(kind, 'thing')}, not a file: {fix}")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise ArtefactError(f"{path}: it is a link to a file that is not there: {fix}") from None
    except OSError as error:
        raise ArtefactError(f"{path}: it cannot be read ({error.strerror}): {fix}") from error


def _refuse(path: Path, folder: Path, error: Exception) -> Refused:
    file = path.relative_to(folder).as_posix()
    _log.error("refused %s: %s", file, error)
    # An ArtefactError reads "path: reason: fix"; the path is not for callers.
    text = str(error).replace(f"{path}: ", "").replace(str(path), file) or type(error).__name__
    reason, separator, fix = text.rpartition(": ")
    if not separator or not isinstance(error, ArtefactError):
        reason, fix = text, "Export the artefact anew with `python -m training export`."
    return Refused(file, reason, fix)


def _card(folder: Path) -> str | None:
    path = folder / CARD
    try:
        if not path.is_file():  # a pipe would never end
            return None
        with path.open("rb") as file:
            return file.read(_LONGEST_CARD).decode("utf-8", "replace")
    except OSError:
        return None


def _examples(folder: Path, space: Space) -> Tensor:
    """Load the examples beside the artefact; none if the file cannot be read."""
    try:
        path = folder / heldout.FILE
        if path.exists():
            _check_file(path)
        return heldout.read(folder, space)
    except (ArtefactError, OSError) as error:
        _log.error("%s is served without examples: %s", folder.name, error)
        return torch.zeros(0, *space.shape)


def _reference(folder: Path, model: DiffusionModel) -> Reference | None:
    """Load the reference beside the artefact; None if the file cannot be read."""
    try:
        return reference.read(folder, model)
    except (ArtefactError, OSError) as error:
        _log.error("%s is served without a reference: %s", folder.name, error)
        return None
