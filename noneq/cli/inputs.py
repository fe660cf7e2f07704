"""Reads a command's inputs: environment variables, files, and the arguments of a posterior."""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from noneq import reading
from noneq.client import URL
from noneq.codec import Array
from noneq.errors import FileError
from noneq.models import Model


def url() -> str:
    """Return NONEQ_URL, or the default address of `noneq serve`."""
    return os.environ.get("NONEQ_URL") or URL


def api_key() -> str | None:
    """Return NONEQ_API_KEY, a variable because all users of a machine see its command lines."""
    return os.environ.get("NONEQ_API_KEY") or None


def true_colour() -> bool:
    """Whether the terminal declares 24-bit colour."""
    return os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")


def files(given: argparse.Namespace) -> list[Path]:
    """List the named files and those in named folders; print skipped ones to stderr."""
    found = reading.find(given.files)
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
