"""Where answers go: looked at before anything is asked, so that nothing is computed in vain."""

import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from noneq import images
from noneq.answer import ENDINGS, PICTURES, Answer
from noneq.errors import FileError, MissingExtra, NoneqError

TABLES = (".csv",)


@dataclass(frozen=True)
class Place:
    """A file or a folder that the command line names.

    Attributes:
        path: of it.
        folder: whether it is a folder, for a file each.
        endings: that a file's name may have.
    """

    path: Path
    folder: bool
    endings: tuple[str, ...] = ENDINGS

    @classmethod
    def of_answer(cls, text: str) -> "Place":
        """For an answer: a file by its ending, or a folder, which is there or ends in a slash."""
        return cls(Path(text), text.endswith(("/", "\\")) or Path(text).is_dir())

    @classmethod
    def of_table(cls, text: str) -> "Place":
        """For a table of scores."""
        return cls(Path(text), folder=False, endings=TABLES)

    def __str__(self) -> str:
        return str(self.path)

    def check(self) -> None:
        """Make the folder, and see whether it can be written there; a file that is there stays.

        Raises:
            FileError: it cannot.
            MissingExtra: a picture is wanted, and Pillow is not installed.
        """
        ending = self.path.suffix.lower()
        if not self.folder and (ending not in self.endings or self.path.is_dir()):
            what = "is a folder" if self.path.is_dir() else f"ends in {ending or 'nothing'}"
            slash = "" if self.endings is TABLES else "; a folder's name ends in /"
            raise FileError(f"{self.path} {what}: write {', '.join(self.endings)}{slash}")
        if (self.folder or ending in PICTURES) and find_spec("PIL") is None:
            raise MissingExtra("pictures need Pillow: pip install 'noneq[client]'")
        try:
            (self.path if self.folder else self.path.parent).mkdir(parents=True, exist_ok=True)
            if self.folder:
                tempfile.TemporaryFile(dir=self.path).close()
                return
            there = self.path.exists()
            with self.path.open("ab"):
                pass
            if not there:
                self.path.unlink()
        except OSError as error:
            raise FileError(f"{self.path}: it cannot be written: {error.strerror}") from error

    def save(self, answer: Answer) -> Path:
        """Write an answer; where that fails it is kept elsewhere, and told where.

        Returns:
            Where it is: the file, or the folder where each sample has a file of its own.

        Raises:
            FileError: it is not where it should be.
        """
        try:
            return _spread(answer, self.path) if self.folder else answer.save(self.path)
        except (NoneqError, OSError, ValueError) as error:
            near = self.path if self.folder else self.path.parent
            raise FileError(f"{error}; {_kept(answer, near)}") from error


def _kept(answer: Answer, near: Path) -> str:
    """Save an answer whole, wherever that can be done, and tell where."""
    name = f"{answer.model}-{answer.seed}"
    for folder in (near, Path(), Path(tempfile.gettempdir())):
        for number in ("", *(f"-{i}" for i in range(1, 100))):
            path = folder / f"{name}{number}.safetensors"
            if path.exists():
                continue
            try:
                return f"the answer is in {answer.save(path)}, which noneq.load reads"
            except OSError:
                break
    print(answer.document(), file=sys.stderr)
    return f"the answer was printed; it is that of model {answer.model} with seed {answer.seed}"


def _spread(answer: Answer, folder: Path) -> Path:
    """Each sample as a picture of its own."""
    samples = answer.numpy()
    events = samples.reshape(-1, *samples.shape[-3:]) if samples.ndim >= 4 else None
    if events is None:
        return answer.save(folder / f"{answer.model}-{answer.seed}.csv")
    white = images.top(events)
    for i, event in enumerate(events):
        tile = images.tile(event, white)
        images.to_pillow(tile).save(folder / f"{answer.model}-{answer.seed}-{i:04}.png")
    return folder
