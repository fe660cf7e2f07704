"""The artefact format: a .safetensors file with tensors and a JSON document that describes them.

The header's metadata holds the document under the key `noneq`, with a format version and a kind:
"model" (`diffusion.checkpoint`) or "classifier" (`diffusion.classifier`). Nothing is unpickled.
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
    """A file is not an artefact that this version can use; the message names the file and a fix."""


class Frozen(BaseModel):
    """The base of a document's parts, which are immutable and reject unknown keys and NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Document = TypeVar("Document", bound=Frozen)
Built = TypeVar("Built", bound=nn.Module)


class Provenance(Frozen):
    """Where the weights came from.

    Attributes:
        data: the data set's name.
        checksum: of the data, or for generated data of the generator's settings, "algorithm:hex".
        steps: training steps; 0 for a closed form.
        kept: the step that these weights are from, if the best were kept; None for the last.
        seed: of training.
        commit: of the training code, with "-dirty" if it had uncommitted changes.
        versions: of the libraries.
        seconds: wall time of training.
        device: the training device.
        config: the whole training configuration.
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
    """Write an artefact atomically."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, {KEY: document.model_dump_json()})
    partial.chmod(0o644)  # save_file makes it readable only by its owner; the server may be another
    partial.replace(path)


def kind_of(path: Path) -> str:
    """Return the kind of an artefact; without one it is "model".

    Raises:
        ArtefactError: not an artefact, or not of this version.
    """
    return str(_document(path).get("kind", "model"))


def read(path: Path, kind: Kind, of: type[Document]) -> Document:
    """Read and validate the document of an artefact of this kind, without its tensors.

    Raises:
        ArtefactError: not an artefact, not of this version, or of another kind.
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
        # The error about a missing installed network already says what to do.
        fix = "" if where == "network.installed" else ": export it anew"
        raise ArtefactError(
            f"{path}: its metadata is invalid: {where}: {first['msg']}{fix}"
        ) from error


def _document(path: Path) -> dict[str, Any]:
    """Read the unvalidated document and check its format version."""
    try:
        with path.open("rb"):  # safe_open reports an unreadable file as missing
            pass
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except FileNotFoundError:
        raise ArtefactError(f"{path}: there is no such file: check its name") from None
    except PermissionError:
        raise ArtefactError(f"{path}: it cannot be read: give it mode 644") from None
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
    """Build a module with `make` and fill it with the file's tensors.

    Args:
        path: the artefact's path.
        process: the process of its document.
        shapes: returns tensors of the right shapes for all parts except the process, by name.
        make: builds the module with fresh weights.

    Raises:
        ArtefactError: the tensors do not fit.
    """
    try:
        with torch.device("meta"):  # no allocation: a document may describe more than fits memory
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
    """Read the file's tensors after checking that all names and shapes are the wanted ones."""
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
    """Raise ArtefactError unless the stored beta is valid and matches its schedule's own table."""
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
