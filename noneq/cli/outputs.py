"""Saves responses, and checks the target before the request so that no work is wasted."""

import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from noneq import files, images
from noneq.errors import FileError, NoneqError, no_pillow
from noneq.files import ENDINGS, PICTURES
from noneq.responses import Response

TABLES = (".csv",)


@dataclass(frozen=True)
class Target:
    """A file or a folder that the command line names, or stdout.

    Attributes:
        path: the path of the file or folder; "-" is stdout.
        folder: whether it is a folder, which gets one file per sample.
        endings: the endings that a file's name may have.
    """

    path: Path
    folder: bool
    endings: tuple[str, ...] = ENDINGS

    @classmethod
    def for_response(cls, text: str) -> "Target":
        """Make a target for a file, or for a folder, which exists or ends in a slash."""
        return cls(Path(text), text.endswith(("/", "\\")) or Path(text).is_dir())

    @classmethod
    def for_table(cls, text: str) -> "Target":
        """Make a target for a table of scores."""
        return cls(Path(text), folder=False, endings=TABLES)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def stdout(self) -> bool:
        """Whether the answer goes to stdout, as a table."""
        return self.path == Path("-")

    def check(self) -> None:
        """Create the folder, and check that files can be written, without changing existing files.

        Raises:
            FileError: nothing can be written there.
            MissingExtra: the target is a picture, and Pillow is not installed.
        """
        if self.stdout:
            return
        ending = self.path.suffix.lower()
        if not self.folder and (ending not in self.endings or self.path.is_dir()):
            what = "is a folder" if self.path.is_dir() else f"ends in {ending or 'nothing'}"
            slash = "" if self.endings is TABLES else "; a folder's name ends in /"
            raise FileError(f"{self.path} {what}: write {', '.join(self.endings)}{slash}")
        if (self.folder or ending in PICTURES) and find_spec("PIL") is None:
            raise no_pillow()
        try:
            (self.path if self.folder else self.path.parent).mkdir(parents=True, exist_ok=True)
            if self.folder:
                tempfile.TemporaryFile(dir=self.path).close()
                return
            existed = self.path.exists()
            with self.path.open("ab"):
                pass
            if not existed:
                self.path.unlink()
        except OSError as error:
            raise FileError(f"{self.path}: it cannot be written: {error.strerror}") from error

    def save(self, response: Response) -> Path:
        """Write a response; if that fails, save it elsewhere and say where in the error.

        Returns:
            The file, or the folder with one file per sample.

        Raises:
            FileError: the response could not be written here.
        """
        if self.stdout:
            files.write_table(sys.stdout, *response.rows())
            return self.path
        try:
            if self.folder:
                return _save_each(response, self.path)
            return response.save(self.path)
        except (NoneqError, OSError, ValueError) as error:
            near = self.path if self.folder else self.path.parent
            raise FileError(f"{error}; {_save_elsewhere(response, near)}") from error


def _save_elsewhere(response: Response, near: Path) -> str:
    """Save the whole response wherever that works; return a sentence that says where."""
    name = f"{response.model}-{response.seed}"
    for folder in (near, Path(), Path(tempfile.gettempdir())):
        for number in ("", *(f"-{i}" for i in range(1, 100))):
            path = folder / f"{name}{number}.safetensors"
            if path.exists():
                continue
            try:
                return f"the answer is in {response.save(path)}, which noneq.load reads"
            except OSError:
                break
    print(response.document(), file=sys.stderr)
    return f"the answer was printed; it is of model {response.model} with seed {response.seed}"


def _save_each(response: Response, folder: Path) -> Path:
    """Save each sample as a picture, or all as a table if they are not images."""
    samples = response.numpy()
    if samples.ndim < 4:
        return response.save(folder / f"{response.model}-{response.seed}.csv")
    samples = samples.reshape(-1, *samples.shape[-3:])
    white = images.top(samples)
    for i, sample in enumerate(samples):
        tile = images.tile(sample, white)
        images.to_pillow(tile).save(folder / f"{response.model}-{response.seed}-{i:04}.png")
    return folder
