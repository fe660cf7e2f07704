"""Find or download the files of published data sets, and verify their checksums.

The environment variable NONEQ_DATA names a folder with one subfolder per data set (`mnist/`, ...).
If it is unset, files are downloaded to `~/.cache/noneq`. A file is used only if its md5 is the
published one. Files in NONEQ_DATA may be compressed, with `.gz` or `.xz` appended to their names;
the md5 is that of the uncompressed bytes.
"""

import gzip
import hashlib
import http.client
import lzma
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from training.data.dataset import DataError

VARIABLE = "NONEQ_DATA"
ATTEMPTS = 3
BLOCK = 1 << 16
TIMEOUT_SECONDS = 30.0
UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}


@dataclass(frozen=True)
class RemoteFile:
    """A published file: its name, its md5, and the URLs of the folders that hold it."""

    name: str
    md5: str
    hosts: tuple[str, ...]


def fetch(dataset: str, file: RemoteFile) -> Path:
    """Path of a verified copy of `file`, downloaded if NONEQ_DATA is unset and none is cached.

    Raises:
        DataError: the folder lacks the file, its bytes are wrong, or it cannot be downloaded.
    """
    folder = data_folder(dataset)
    if folder is not None:
        path = folder / file.name
        if not path.is_file():
            raise DataError(
                f"{path} does not exist: {VARIABLE}={folder.parent} should hold "
                f"{dataset}/{file.name}; put the file there, or unset {VARIABLE} to download it"
            )
        found = md5(path)
        if found != file.md5:
            raise DataError(
                f"{path} is corrupt: its md5 is {found}, expected {file.md5}; replace the file, "
                f"or unset {VARIABLE} to download it"
            )
        return path
    path = cache_folder() / dataset / file.name
    if path.is_file() and md5(path) == file.md5:
        return path
    download(file, path)
    return path


def read(dataset: str, file: RemoteFile) -> bytes:
    """The verified bytes of `file`, found as by `fetch`; in NONEQ_DATA it may be compressed.

    Raises:
        DataError: as `fetch`, or the compressed file is corrupt.
    """
    folder = data_folder(dataset)
    for suffix, unpack in UNPACK.items():
        path = None if folder is None else folder / (file.name + suffix)
        if path is None or not path.is_file():
            continue
        try:
            content = unpack(path.read_bytes())
        except (OSError, EOFError, lzma.LZMAError) as error:
            raise DataError(f"{path} is no whole {suffix} file ({error}); replace it") from error
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != file.md5:
            raise DataError(
                f"{path} is corrupt: uncompressed its md5 is {found}, expected {file.md5}; replace "
                f"the file, or unset {VARIABLE} to download it"
            )
        return content
    return fetch(dataset, file).read_bytes()


def data_folder(dataset: str) -> Path | None:
    """The folder of a data set in NONEQ_DATA; None if the variable is unset."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() / dataset if named else None


def local_folder(name: str) -> Path:
    """The folder `name` of the user's own files, in NONEQ_DATA.

    Raises:
        DataError: the variable is unset, or the folder does not exist.
    """
    folder = data_folder(name)
    if folder is None:
        raise DataError(f"{name}/ holds your own files: set {VARIABLE} to its parent folder")
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: {VARIABLE}={folder.parent} should hold {name}/")
    return folder


def cache_folder() -> Path:
    """The folder of downloaded files."""
    return Path.home() / ".cache" / "noneq"


def md5(path: Path) -> str:
    """The md5 of a file in hexadecimal; it detects accidents, not malice."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(file: RemoteFile, path: Path) -> None:
    """Download and verify `file`, trying each host ATTEMPTS times, then move it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    troubles: list[str] = []
    try:
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(2.0**attempt)
            for host in file.hosts:
                url = f"{host}/{file.name}"
                try:
                    _stream(url, partial)
                except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
                    troubles.append(f"{url}: {error}")
                    continue
                found = md5(partial)
                if found == file.md5:
                    partial.replace(path)
                    return
                troubles.append(f"{url}: md5 {found}, expected {file.md5}")
    finally:
        partial.unlink(missing_ok=True)
    raise DataError(
        f"could not download {file.name} ({ATTEMPTS} attempts at {len(file.hosts)} hosts). "
        f"Without internet, put it into a folder {path.parent.name}/ and set {VARIABLE} to the "
        "folder above it. The errors were:\n  " + "\n  ".join(troubles)
    )


def _stream(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, path.open("wb") as out:
        total = int(answer.headers.get("Content-Length", 0)) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=path.name.split(".")[0]) as bar:
            while block := answer.read(BLOCK):
                out.write(block)
                bar.update(len(block))
