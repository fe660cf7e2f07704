"""Arrays of numbers in files: .npy, and .npz that hold one. Nothing is ever unpickled."""

import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from noneq.errors import FileError

Array = NDArray[Any]


def load(path: Path) -> Array:
    """The array of a .npy, whose parts are read when they are used, or of a .npz.

    Raises:
        FileError: it is none, cut short, or holds something else than real numbers.
    """
    try:
        found = _open(path)
    except FileError:
        raise
    except (OSError, ValueError, EOFError, MemoryError) as error:
        if re.search("pickled|Object arrays|Python objects", str(error)):
            raise FileError(
                f"{path} is no .npy, or holds Python objects, which are never unpickled: save an "
                "array of numbers"
            ) from None
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise FileError(f"{path} is no array that can be read ({said})") from error
    except (zipfile.BadZipFile, zlib.error, SyntaxError, TypeError) as error:
        raise FileError(f"{path} is no array that can be read ({error})") from error
    if found.dtype.kind not in "biuf":
        raise FileError(f"{path} holds {found.dtype}, expected real numbers")
    if found.dtype.kind == "f" and found.dtype.itemsize > 8:
        raise FileError(f"{path} holds {found.dtype}, expected at most float64")
    if not found.ndim or not found.size:
        raise FileError(f"{path} holds an array of shape {list(found.shape)}, expected rows")
    return found


def _open(path: Path) -> Array:
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return _only(arrays, path)


def _only(file: "np.lib.npyio.NpzFile", path: Path) -> Array:
    if len(file.files) != 1:
        raise FileError(
            f"{path} holds {len(file.files)} arrays ({', '.join(file.files)[:100]}): save the one "
            "that is meant as .npy"
        )
    found: Array = file[file.files[0]]
    return found


def events(array: Array, shape: tuple[int, ...], of: str) -> Array:
    """[N, *shape], of an array of N data points or of one.

    Rows [N, D] are brought to the shape, and one channel may be left out; nothing else is.

    Args:
        array: that was read.
        shape: of a data point.
        of: whose shape it is, for the message.

    Raises:
        FileError: it has another shape.
    """
    found = array.shape
    grey = len(shape) == 3 and shape[0] == 1
    if found == shape or (grey and found == shape[1:]):
        return array.reshape(1, *shape)
    if found[1:] == shape or (grey and found[1:] == shape[1:]):
        return array.reshape(-1, *shape)
    if array.ndim == 2 and found[1] == math.prod(shape):
        return array.reshape(-1, *shape)
    raise FileError(
        f"it has shape {list(found)}, where {of} takes {list(shape)}, or N of them: "
        f"{advice(found, shape)}"
    )


def advice(found: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """What to do with an array of another shape than [N, *shape]."""
    if len(shape) == 3 and found[-3:] == (*shape[1:], shape[0]):
        return "its channels are last: move them first, numpy.moveaxis(x, -1, -3)"
    return "cut or reshape it"
