"""Read a source's files: JSON settings, and safetensors or pickled weights as data only."""

import hashlib
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from training.convert.found import ConvertError

Document = TypeVar("Document", bound=BaseModel)


def sha256(path: Path) -> str:
    """The file's checksum, as `sha256:...`."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConvertError: the file is missing or holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise ConvertError(f"{path}: there is no such file") from None
    except (OSError, ValueError) as error:
        raise ConvertError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ConvertError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def checked(settings: Mapping[str, Any], kind: type[Document], where: str) -> Document:
    """Validate settings as a document of type `kind`.

    Raises:
        ConvertError: a key is unknown or a value is not supported; the message names each.
    """
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        wrong = []
        for one in error.errors():
            key = ".".join(str(part) for part in one["loc"]) or "as a whole"
            wrong.append(f"{key} = {one['input']!r} ({one['msg']})")
        raise ConvertError(f"{where}: cannot be converted: {'; '.join(wrong)}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, an index of shards, or a pickled file.

    Raises:
        ConvertError: the file is unreadable or holds something other than tensors.
    """
    if path.name.endswith(".index.json"):
        parts = [read_tensors(shard) for shard in shards(path)]
        whole = {name: tensor for part in parts for name, tensor in part.items()}
        if len(whole) < sum(map(len, parts)):
            raise ConvertError(f"{path}: some tensor names occur in several of its files")
        return whole
    if path.suffix != ".safetensors":
        return only_tensors(read_pickled(path), path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ConvertError(f"{path}: not a readable .safetensors file ({error})") from error


def shards(path: Path) -> list[Path]:
    """The files that a shard index names, all beside it; [] if `path` is not an index.

    Raises:
        ConvertError: the index names no files.
    """
    if not path.name.endswith(".index.json"):
        return []
    held = read_json(path).get("weight_map")
    if not (isinstance(held, dict) and held and all(isinstance(v, str) for v in held.values())):
        raise ConvertError(f"{path}: its weight_map names no files")
    return [path.parent / Path(name).name for name in sorted(set(held.values()))]


def read_pickled(path: Path) -> Any:  # noqa: ANN401  (a checkpoint's contents)
    """Read a `torch.save` file as data; a pickle that would run code is refused."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = str(error).partition("Please file an issue")[0].strip()
        reason = next((line for line in asked.splitlines() if "nsupported" in line), "not weights")
        raise ConvertError(
            f"{path}: refused, and nothing of it was run, because it holds more than tensors "
            f"({reason.strip()}); ask its author for a .safetensors file"
        ) from error
    except Exception as error:  # a bad file can raise anything
        raise ConvertError(f"{path}: not a readable file of torch.save ({error})") from error


def only_tensors(found: Any, path: Path) -> dict[str, Tensor]:  # noqa: ANN401  (a checkpoint's contents)
    """Check that `found` is a state dict of tensors only, and return it."""
    if not isinstance(found, dict):
        raise ConvertError(
            f"{path}: a state dict was expected (names and tensors), came {type(found).__name__}"
        )
    others = [str(name) for name, value in found.items() if not isinstance(value, Tensor)]
    if others:
        raise ConvertError(
            f"{path}: a state dict was expected (names and tensors), and these are none: "
            f"{', '.join(others[:6])}"
        )
    return {str(name): value for name, value in found.items()}


def as_float32(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Convert the tensors to float32.

    Raises:
        ConvertError: a tensor holds NaN or infinity, or is not a dense float tensor.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            raise ConvertError(f"{path}: tensor {name} is {tensor.dtype}, but weights are floats")
        if not bool(torch.isfinite(tensor).all()):
            raise ConvertError(f"{path}: tensor {name} holds NaN or infinity")
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}
