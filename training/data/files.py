"""Files that data sets come in: found in a folder, or downloaded, and checked either way.

The environment variable NONEQ_DATA names a folder with one subfolder a data set (`mnist/`, ...).
Where it is unset, files are downloaded into the cache folder `~/.cache/noneq`. A file is used only
if its md5 is the published one. A folder may hold a file compressed, with `.gz` or `.xz` after its
name; the md5 is that of its bytes uncompressed.
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
    """A published file: its name, the md5 of its bytes, and the folders on the web that hold it."""

    name: str
    md5: str
    hosts: tuple[str, ...]


def fetch(dataset: str, file: RemoteFile) -> Path:
    """Path of a checked copy of `file`, downloaded if NONEQ_DATA is unset and there is none yet.

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
    """The checked bytes of `file`: from NONEQ_DATA, where it may be compressed, or as `fetch` does.

    Raises:
        DataError: as `fetch`, or a file that is no whole `.gz` or `.xz`.
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
    """Where NONEQ_DATA says that this data set lies; None where it is unset."""
    named = os.environ.get(VARIABLE)
    return Path(named).expanduser() / dataset if named else None


def local_folder(name: str) -> Path:
    """The folder `name` of one's own files, below the one that NONEQ_DATA names.

    Raises:
        DataError: the variable is unset, or there is no such folder.
    """
    folder = data_folder(name)
    if folder is None:
        raise DataError(
            f"{name}/ holds your own files: set {VARIABLE} to the folder that it lies in"
        )
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: {VARIABLE}={folder.parent} should hold {name}/")
    return folder


def cache_folder() -> Path:
    """Where downloads are kept."""
    return Path.home() / ".cache" / "noneq"


def md5(path: Path) -> str:
    """md5 of a file's bytes, in hexadecimal: as published: against accidents, not malice."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(file: RemoteFile, path: Path) -> None:
    """Download `file` to `path`, whole and checked or not at all; each host has ATTEMPTS."""
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
        "folder above it. What happened:\n  " + "\n  ".join(troubles)
    )


def _stream(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, path.open("wb") as out:
        total = int(answer.headers.get("Content-Length", 0)) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=path.name.split(".")[0]) as bar:
            while block := answer.read(BLOCK):
                out.write(block)
                bar.update(len(block))
