"""Reads a command's inputs: files, and the arguments of a posterior."""

import argparse
import atexit
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from noneq import reading
from noneq.codec import Array
from noneq.errors import FileError
from noneq.models import Model


def true_colour() -> bool:
    """Whether the terminal declares 24-bit colour."""
    return os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")


#: What the first bytes of a file may be, and the ending that it should have; else it is a table.
_BEGINNINGS = (
    (b"\x93NUMPY", ".npy"),
    (b"PK\x03\x04", ".npz"),
    *((of, ".png") for of in (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")),
)


class StandardInput(type(Path())):  # type: ignore[misc]  # PosixPath, or WindowsPath
    """The file that stdin was copied to, because readers seek; called "-"."""

    def __fspath__(self) -> str:
        return str(super().__str__())

    def __str__(self) -> str:
        return "-"


def standard_input() -> Path:
    """Copy stdin to a file, which is removed at exit: a picture, an array, else a table."""
    raw = sys.stdin.buffer.read()
    if not raw:
        raise FileError("-: nothing came from stdin")
    folder = tempfile.TemporaryDirectory(prefix="noneq-")
    atexit.register(folder.cleanup)
    ending = next((ending for start, ending in _BEGINNINGS if raw.startswith(start)), ".csv")
    path = StandardInput(folder.name, f"stdin{ending}")
    path.write_bytes(raw)
    return path


def text(name: str) -> str:
    """Return the text of a CSV file, or of stdin for "-".

    Raises:
        FileError: it cannot be read, or is not in UTF-8.
    """
    try:
        raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return raw.decode("utf-8-sig") + "\n"
    except OSError as error:
        raise FileError(f"{name} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError:
        raise FileError(f"{name} is no text in UTF-8: save it as CSV UTF-8") from None


def files(given: argparse.Namespace) -> list[Path]:
    """List the named files and those in named folders; print skipped ones to stderr."""
    found = reading.find(standard_input() if name == "-" else name for name in given.files)
    skipped = reading.describe_skipped(found.skipped)
    if skipped is not None:
        print(f"noneq: {skipped}", file=sys.stderr)
    return found.files


def observed(given: argparse.Namespace, model: Model) -> tuple[Array, Array]:
    """Read the observed values, and which of them are known."""
    values, known = reading.read_all(files(given), model)
    if given.known is not None:
        mask = reading.read_mask(given.known, model)
        if len(mask) not in (1, len(known)):
            raise FileError(f"{given.known}: {len(mask)} masks, for {len(known)} examples")
        known = known & mask
    return values, known


def operator(given: argparse.Namespace, model: Model) -> tuple[dict[str, Any] | None, Model]:
    """Return the observation's operator, and the model with the observation's shape."""
    shape = model.shape
    if given.pooling is not None:
        found: dict[str, Any] = {"kind": "average-pooling", "size": given.pooling}
        size = max(1, given.pooling)
        sides = shape[-2:] if len(shape) == 3 else shape
        shape = (*shape[: -len(sides)], *(side // size for side in sides))
    elif given.blur is not None:
        found = {"kind": "blur", "kernel": reading.read_table(given.blur)}
    elif given.matrix is not None:
        found = {"kind": "dense", "rows": reading.read_table(given.matrix)}
        shape = (len(found["rows"]),)
    else:
        return None, model
    if given.known is not None:
        raise FileError("--known marks observed elements, and cannot be used with an operator")
    name = f"{model.name} through {found['kind']}"
    return found, replace(model, name=name, shape=shape, columns=None)


def posterior_options(given: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Collect the options that `posterior`, `inpaint` and `denoise` share."""
    names = ("num_samples", "noise_std", "flip_probability", "quantiles", "steps", "seed")
    options = {name: getattr(given, name) for name in names}
    return {"model": model.name, "method": _method(given), **options}


def _method(given: argparse.Namespace) -> str | dict[str, Any] | None:
    """Return the method's name, or an object if fields were set."""
    fields: list[str] = list(given.set)
    if given.particles is not None:
        fields.append(f"particles={given.particles}")
    if not fields:
        name: str | None = given.method
        return name
    found: dict[str, Any] = {"name": given.method or "auto"}
    for field in fields:
        key, equals, value = field.partition("=")
        if not equals:
            raise FileError(f"--set {field}: write NAME=VALUE, as --set systems=joint")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value  # a word
    return found
