"""Loads the models folder: NAME/model.safetensors, each served under its folder's name.

Classifiers live in the same folder. They are not listed as models, but used in posteriors of the
models they fit. A file that cannot be served is listed with the reason and the fix; the others are
served all the same.
"""

import hashlib
import logging
import stat
from collections.abc import Callable, Mapping
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
from service.engine.scheduling.batch import ModelVersion
from service.errors import ModelFailed, NoDeviceMemory, Problem

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
        checksum: SHA-256 of its file, in hexadecimal.
    """

    name: str
    classifier: Classifier
    host: Classifier
    checksum: str = ""

    def refreshed(self, _: Path) -> "ServedClassifier":
        """The same: nothing beside a classifier's file is read."""
        return self

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
        version: how many times a model of that name had been loaded before.
    """

    name: str
    model: DiffusionModel
    metadata: Metadata
    checksum: str
    card: str | None = None
    classifiers: tuple[ServedClassifier, ...] = ()
    examples: Tensor = field(default_factory=lambda: torch.zeros(0))
    reference: Reference | None = None
    version: int = 0

    @property
    def key(self) -> ModelVersion:
        """What the engine knows it by."""
        return ModelVersion(self.name, self.version)

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights on the device."""
        return sum(each.nbytes for each in self.model.state_dict().values())

    def refreshed(self, folder: Path) -> "Served":
        """The same model with what lies beside its file now."""
        return replace(
            self,
            card=_card(folder),
            examples=_examples(folder, self.model.space),
            reference=_reference(folder, self.model),
        )


@dataclass(frozen=True)
class Refused:
    """A file that is not served, and why."""

    file: str
    reason: str
    fix: str

    @classmethod
    def of(cls, name: str, failure: Problem) -> "Refused":
        """The file of a model of that name, which could not be loaded."""
        return cls(f"{name}/{FILE}", failure.detail, str(failure.fields.get("fix", "")))

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.file.partition("/")[0]


@dataclass(frozen=True)
class Catalogue:
    """The contents of a models folder, as they are served.

    Attributes:
        served: by name, in alphabetical order.
        refused: the files that are not served, or not as they are now.
        wanted: the default by the settings.
        classifiers: by name, in alphabetical order.
    """

    served: Mapping[str, Served] = field(default_factory=dict)
    refused: tuple[Refused, ...] = ()
    wanted: str | None = None
    classifiers: Mapping[str, ServedClassifier] = field(default_factory=dict)

    @property
    def default(self) -> str | None:
        """The model for requests that name none; None if every request has to name one."""
        if self.wanted in self.served:
            return self.wanted
        return next(iter(self.served)) if len(self.served) == 1 else None

    def find(self, name: str) -> Served | ServedClassifier | None:
        """The model or classifier of that name."""
        return self.served.get(name) or self.classifiers.get(name)

    def including(self, found: Served | ServedClassifier) -> "Catalogue":
        """The same with a model or a classifier, in place of any of its name."""
        rest = self.without(found.name)
        served, classifiers = dict(rest.served), dict(rest.classifiers)
        if isinstance(found, Served):
            served[found.name] = found
        else:
            classifiers[found.name] = found
        return _matched(served, rest.refused, self.wanted, classifiers)

    def without(self, name: str) -> "Catalogue":
        """The same without what has that name, served or refused."""
        return _matched(
            {key: model for key, model in self.served.items() if key != name},
            tuple(each for each in self.refused if each.name != name),
            self.wanted,
            {key: each for key, each in self.classifiers.items() if key != name},
        )

    def refusing(self, refused: Refused) -> "Catalogue":
        """The same with a file refused; what is served under its name stays."""
        others = [each for each in self.refused if each.name != refused.name]
        return replace(self, refused=(*others, refused))


def _matched(
    served: Mapping[str, Served],
    refused: tuple[Refused, ...],
    wanted: str | None,
    classifiers: Mapping[str, ServedClassifier],
) -> Catalogue:
    """A catalogue in order, each model with the classifiers that fit it."""
    ordered = dict(sorted(classifiers.items()))
    matched = {}
    for name, model in sorted(served.items()):
        fitting = tuple(each for each in ordered.values() if each.fits(model.model))
        matched[name] = replace(model, classifiers=fitting)
    return Catalogue(matched, refused, wanted, ordered)


def load_folder(
    folder: Path,
    device: str,
    default: str | None = None,
    check: Callable[[Path], None] = lambda _: None,
) -> Catalogue:
    """Load every `*/model.safetensors` of a folder; treat a missing folder as empty.

    Args:
        folder: of the models.
        device: to load them on.
        default: name of the model for requests that name none.
        check: raises NoDeviceMemory where a file does not fit.
    """
    catalogue = Catalogue(wanted=default)
    files = find_files(folder)
    if not files:
        _log.warning("no %s/*/%s: nothing to serve", folder, FILE)
    for path in files:
        try:
            catalogue = catalogue.including(load_file(path, device, check))
        except ModelFailed as failure:
            catalogue = catalogue.refusing(Refused.of(path.parent.name, failure))
    if default is not None and default not in catalogue.served:
        _log.error(
            "NONEQ_DEFAULT_MODEL=%s is not among the served models (%s): requests have to name one",
            default,
            ", ".join(catalogue.served) or "none",
        )
    return catalogue


def load_file(
    path: Path, device: str, check: Callable[[Path], None] = lambda _: None
) -> Served | ServedClassifier:
    """Load a model or a classifier, under its folder's name.

    Raises:
        ModelFailed: it cannot be served.
    """
    name = path.parent.name
    try:
        before = _check_file(path)
        check(path)
        checksum = checksum_of(path)
        if kind_of(path) == "classifier":
            classifier, _ = load_classifier(path, device)
            found: Served | ServedClassifier = ServedClassifier(
                name, classifier, deepcopy(classifier).cpu(), checksum
            )
        else:
            model, metadata = load(path, device)
            found = Served(name, model, metadata, checksum).refreshed(path.parent)
        if _check_file(path) != before:
            raise ArtefactError(
                f"{path}: it was written while it was read: write it beside and rename it"
            )
    except NoDeviceMemory:
        raise
    except (ArtefactError, OSError) as error:
        raise _failure(path, error) from error
    except Exception as error:  # a hostile file must not keep the others from being served
        _log.exception("loading %s failed", path)
        raise _failure(path, error) from error
    return found


def checksum_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


Stamp = tuple[int, int, int]


def _check_file(path: Path) -> Stamp:
    """Raise ArtefactError unless it is a readable file; a pipe would never end.

    Returns:
        What differs once it has been written again.
    """
    fix = "put the artefact itself there, readable for the service's user"
    try:
        found = path.stat()
        kind = stat.S_IFMT(found.st_mode)
        if kind != stat.S_IFREG:
            raise ArtefactError(f"{path}: it is a {_KINDS.get(kind, 'thing')}, not a file: {fix}")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise ArtefactError(f"{path}: it is a link to a file that is not there: {fix}") from None
    except OSError as error:
        raise ArtefactError(f"{path}: it cannot be read ({error.strerror}): {fix}") from error
    return found.st_ino, found.st_size, found.st_mtime_ns


def _failure(path: Path, error: Exception) -> ModelFailed:
    file = f"{path.parent.name}/{path.name}"
    _log.error("refused %s: %s", file, error)
    # An ArtefactError reads "path: reason: fix"; the path is not for callers.
    text = str(error).replace(f"{path}: ", "").replace(str(path), file) or type(error).__name__
    reason, separator, fix = text.rpartition(": ")
    if not separator or not isinstance(error, ArtefactError):
        reason, fix = text, "Export the artefact anew with `python -m training export`."
    return ModelFailed(reason, received=file, fix=fix)


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
