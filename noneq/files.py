"""Writes arrays to files, and converts them to lists for JSON."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from noneq.codec import Array

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf")
ENDINGS = (".safetensors", ".npz", ".npy", ".csv", ".json", *PICTURES)


def write(path: Path, raw: bytes) -> None:
    """Write all of the bytes or none: an interrupted save leaves the old file intact."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(raw)
    partial.replace(path)


def write_npy(path: Path, array: Array) -> None:
    """Write one array in numpy's .npy format."""
    with path.open("wb") as out:
        np.save(out, array, allow_pickle=False)


def write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays in numpy's .npz format."""
    with path.open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **arrays)


def write_csv(path: Path, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table under a line of column names."""
    with path.open("w", newline="", encoding="utf-8") as out:
        write_table(out, names, rows)


def write_table(out: TextIO, names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a table to an open file."""
    table = csv.writer(out, lineterminator="\n")
    table.writerow(names)
    table.writerows(rows)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON object."""
    path.write_text(json.dumps(document, allow_nan=False) + "\n", encoding="utf-8")


def to_lists(array: Array) -> Any:  # noqa: ANN401  (nested lists of any depth)
    """Convert to nested lists: whole numbers as integers, None for what is not finite."""
    if array.dtype.kind == "f":
        if not bool(np.isfinite(array).all()):
            return finite(array.tolist())
        if bool((array == np.rint(array)).all()) and bool((np.abs(array) < 2**53).all()):
            return array.astype(np.int64).tolist()
    return array.tolist()


def finite(value: Any) -> Any:  # noqa: ANN401
    """Replace numbers of nested lists that are not finite by None."""
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
