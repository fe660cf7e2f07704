"""Lists the pictures and tables in a folder, and the skipped files with the reason."""

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from noneq.errors import FileError
from noneq.reading import pictures, tables

PICTURES = pictures.SUFFIXES
TABLES = tables.SUFFIXES
_NAMED = 3  # files to name of those skipped for one reason


@dataclass(frozen=True)
class Skipped:
    """A skipped file or folder, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Folder:
    """The files in a folder and its subfolders, ordered by name.

    Attributes:
        path: the folder's path.
        pictures: files with the ending of a picture.
        tables: files with the ending of a table or an array.
        skipped: everything else.
    """

    path: Path
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def scan(path: Path) -> Folder:
    """List everything in a folder and its subfolders.

    Hidden files and folders (`.DS_Store`, `._x.png`), links to folders, special files and files
    with other endings are skipped.

    Raises:
        FileError: the folder cannot be read.
    """
    found = Folder(path)

    def unreadable(error: OSError) -> None:
        raise FileError(f"{error.filename} cannot be read ({error.strerror})")

    for base, below, names in os.walk(path, onerror=unreadable):
        folder = Path(base)
        for name in sorted(below):
            if name.startswith("."):
                found.skipped.append(Skipped(folder / name, "hidden"))
            elif (folder / name).is_symlink():
                found.skipped.append(Skipped(folder / name, "a link to a folder"))
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            _sort(found, folder / name)
    return found


def _sort(found: Folder, path: Path) -> None:
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        found.skipped.append(Skipped(path, "hidden"))
    elif not path.is_file():
        found.skipped.append(Skipped(path, "no plain file"))
    elif suffix in PICTURES:
        found.pictures.append(path)
    elif suffix in TABLES:
        found.tables.append(path)
    else:
        found.skipped.append(Skipped(path, "neither a picture nor a table"))


def describe_skipped(skipped: Iterable[Skipped]) -> str | None:
    """Summarise the skipped files in a line: how many, why, and some names; None without any."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for one in skipped:
        by_reason[one.why].append(one.path.name)
    if not by_reason:
        return None
    count = sum(len(names) for names in by_reason.values())
    reasons = [
        f"{len(names)} {why} ({', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)})"
        for why, names in by_reason.items()
    ]
    return f"{count} {'file' if count == 1 else 'files'} skipped: {'; '.join(reasons)}"
