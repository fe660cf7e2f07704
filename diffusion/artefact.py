"""A file of the project: tensors, and one JSON document that says what they are.

A .safetensors file whose header's metadata holds the document under the key `noneq`, with a format
version and a kind: "model" (`diffusion.checkpoint`) or "classifier" (`diffusion.classifier`).
Nothing is ever unpickled.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from diffusion.process import ProcessConfig
from diffusion.schedule import check_beta

FORMAT = 1
KEY = "noneq"
Kind = Literal["model", "classifier"]


class ArtefactError(ValueError):
    """A file is no artefact that this version can use; the message names the file and the fix."""


class Frozen(BaseModel):
    """A part of a document: frozen, finite, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Document = TypeVar("Document", bound=Frozen)
Built = TypeVar("Built", bound=nn.Module)


class Provenance(Frozen):
    """Where the weights came from.

    Attributes:
        data: the data set's name.
        checksum: of the data, "algorithm:hex"; of generated data, of the generator's settings.
        steps: of training; 0 for a closed form.
        kept: the step whose weights these are, where the best were kept; None for the last.
        seed: of training.
        commit: of the code that trained; "-dirty" where it had changes.
        versions: of the libraries.
        seconds: of training, wall time.
        device: that trained.
        config: the whole configuration, as it was.
    """

    data: str
    checksum: str | None = None
    steps: int = Field(0, ge=0)
    kept: int | None = Field(None, ge=0)
    seed: int = 0
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: float | None = None
    device: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)


def write(path: Path, module: nn.Module, document: Frozen) -> None:
    """Write an artefact; the file appears whole or not at all."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, {KEY: document.model_dump_json()})
    partial.chmod(0o644)  # the server may be another user; save_file writes for the owner alone
    partial.replace(path)


def kind_of(path: Path) -> str:
    """What a file says it is; a document without a kind is a model's.

    Raises:
        ArtefactError: not an artefact, or not one of this version.
    """
    return str(_document(path).get("kind", "model"))


def read(path: Path, kind: Kind, of: type[Document]) -> Document:
    """The document of an artefact of that kind, checked, without its tensors.

    Raises:
        ArtefactError: not an artefact, not one of this version, or one of another kind.
    """
    document = _document(path)
    found = document.get("kind", "model")
    if found != kind:
        raise ArtefactError(
            f"{path}: an artefact of kind {found!r}, wanted is one of kind {kind!r}: name another "
            "file"
        )
    try:
        return of.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "as a whole"
        # A kind that an installed package would bring says itself what to do.
        fix = "" if where == "network.installed" else ": export it anew"
        raise ArtefactError(
            f"{path}: its metadata does not hold: {where}: {first['msg']}{fix}"
        ) from error


def _document(path: Path) -> dict[str, Any]:
    """The document as it stands, of this version's format."""
    try:
        with path.open("rb"):  # safe_open calls a file that may not be read one that is not there
            pass
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except FileNotFoundError:
        raise ArtefactError(f"{path}: there is no such file: check its name") from None
    except PermissionError:
        raise ArtefactError(f"{path}: it may not be read: give it mode 644") from None
    except (SafetensorError, OSError) as error:
        raise ArtefactError(
            f"{path}: not a readable .safetensors file ({error}): copy it again or export it anew"
        ) from error
    if KEY not in header:
        raise ArtefactError(
            f"{path}: a .safetensors file, but no noneq artefact (no metadata under {KEY!r}): "
            "export one with `python -m training export`"
        )
    try:
        document = json.loads(header[KEY])
    except json.JSONDecodeError as error:
        raise ArtefactError(f"{path}: its metadata is no JSON ({error}): export it anew") from error
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT:
        raise ArtefactError(
            f"{path}: format {version!r}, this version reads format {FORMAT}: export it anew "
            "with the version of noneq that serves it"
        )
    assert isinstance(document, dict)  # it has a format
    return document


def restore(
    path: Path,
    process: ProcessConfig,
    shapes: Callable[[], dict[str, Tensor]],
    make: Callable[[], Built],
) -> Built:
    """What `make` builds, with the file's tensors.

    Args:
        path: of the artefact.
        process: of its document.
        shapes: tensors of all parts but the process, by name; what they hold does not count.
        make: the whole with fresh weights.

    Raises:
        ArtefactError: tensors that do not fit.
    """
    try:
        with torch.device("meta"):  # shapes alone: a document may ask for more than there is
            wanted = shapes()
        fresh = process.build()
        found = _read_tensors(path, wanted | fresh.state_dict(prefix="process."))
        _check_table(path, process, fresh.beta, found["process.beta"])
        built = make()
    except ArtefactError:
        raise
    except (ValueError, RuntimeError) as error:
        raise ArtefactError(f"{path}: its parts do not fit: {error}: export it anew") from error
    with torch.no_grad():
        for name, tensor in built.state_dict().items():
            tensor.copy_(found[name])
    return built


def _read_tensors(path: Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, of the wanted names and shapes; none is read before all of them fit."""
    with safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118, it is no dict
        missing, foreign = (
            sorted(wanted.keys() - shapes.keys()),
            sorted(shapes.keys() - wanted.keys()),
        )
        if missing or foreign:
            raise ArtefactError(
                f"{path}: its tensors do not fit its network: missing {missing[:3] or 'none'}, "
                f"unknown {foreign[:3] or 'none'}: export it anew"
            )
        for name, tensor in wanted.items():
            if list(tensor.shape) != shapes[name]:
                raise ArtefactError(
                    f"{path}: tensor {name} has shape {shapes[name]}, its network needs "
                    f"{list(tensor.shape)}: export it anew"
                )
        found = {name: file.get_tensor(name) for name in wanted}
    for name, tensor in found.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ArtefactError(f"{path}: tensor {name} holds NaN or infinity: export it anew")
    return found


def _check_table(path: Path, process: ProcessConfig, beta: Tensor, found: Tensor) -> None:
    """A named schedule's table is its own; only a "table" may hold other values."""
    try:
        check_beta(found)
    except ValueError as error:
        raise ArtefactError(f"{path}: process.beta: {error}: export it anew") from error
    kind = process.schedule.kind
    if kind != "table" and not torch.allclose(found.double(), beta, rtol=1e-6, atol=0):
        raise ArtefactError(
            f"{path}: process.beta holds other values than its schedule {kind!r} gives: export it "
            "anew, with schedule kind 'table' if the values were learned"
        )
