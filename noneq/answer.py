"""What all answers have: plain fields and numpy arrays, a picture, and a way into a file."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from noneq import files, images
from noneq.codec import Array, Body, encode
from noneq.errors import NotPictured, UnreadableAnswer

if TYPE_CHECKING:
    from PIL.Image import Image


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf")
ENDINGS = (".safetensors", ".npz", ".npy", ".csv", ".json", *PICTURES)


@dataclass(frozen=True)
class Timing:
    """What the headers of an answer say.

    Attributes:
        request_id: by which the operator finds the request in the log.
        queue_seconds: waited until the first network call.
        compute_seconds: from then to the answer.
    """

    request_id: str = ""
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Answer(ABC):
    """What all answers have. Abstract.

    Attributes:
        body: everything that came: plain fields, and the arrays by name.
        timing: where and when it was answered; not saved.
    """

    kind: ClassVar[str]
    needed: ClassVar[tuple[str, ...]]

    body: Body
    timing: Timing = field(default=Timing())

    def __post_init__(self) -> None:
        there = {*self.body.fields, *self.body.tensors}
        missing = [name for name in ("model", "seed", *self.needed) if name not in there]
        if missing:
            raise UnreadableAnswer(
                f"an answer of this kind ({self.kind}) has {', '.join(missing)}; what came has "
                f"{', '.join(sorted(there)) or 'nothing'}"
            )

    def __repr__(self) -> str:
        arrays = [f"{name}={x.dtype}{list(x.shape)}" for name, x in self.body.tensors.items()]
        plain = [f"{name}={self.body.fields[name]!r}" for name in ("model", "seed")]
        return f"{type(self).__name__}({', '.join(plain + arrays)})"

    @property
    def model(self) -> str:
        """Which model answered."""
        return str(self.body.fields["model"])

    @property
    def seed(self) -> int:
        """With the same request it gives the same answer."""
        return int(self.body.fields["seed"])

    @property
    def exact(self) -> bool:
        """Whether that is so to the last bit, whatever else the service is doing."""
        return bool(self.body.fields.get("exact", False))

    @property
    def network_evaluations(self) -> int:
        """Rows put through the network."""
        return int(self.body.fields.get("network_evaluations", 0))

    def elements(self, count: int) -> list[str]:
        """Names of a data point's elements: those of the model's columns, or x0, x1, ..."""
        return list(self.body.fields.get("columns") or (f"x{i}" for i in range(count)))

    @abstractmethod
    def numpy(self) -> Array:
        """The answer's main array."""

    @abstractmethod
    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """The main array as a table: names of its columns, and its rows."""

    def image(self) -> "Image":
        """A picture to look at; needs Pillow (`pip install 'noneq[client]'`).

        Raises:
            MissingExtra: Pillow is not installed.
            NotPictured: the answer has nothing to draw.
        """
        return images.to_pillow(self.pixels())

    def pixels(self) -> images.Pixels:
        """That picture, uint8 [height, width, 3]."""
        raise NotPictured(f"{type(self).__name__} are numbers: save them as .csv or .npy")

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the answer, in the form that the name's ending says; returns the path.

        `.safetensors` is the whole answer, which `load` reads again; `.npz` all its arrays, `.npy`
        the main one, `.csv` a line for each example, `.json` everything as text, `.png` (or what
        else Pillow writes) the picture.

        Raises:
            ValueError: another ending.
            MissingExtra, NotPictured: as `image`.
        """
        target = Path(path)
        match target.suffix.lower():
            case ".safetensors":
                stated = replace(self.body, fields={**self.body.fields, "kind": self.kind})
                files.write(target, encode(stated, "answer")[0])
            case ".npy":
                files.write_npy(target, self.numpy())
            case ".npz":
                files.write_npz(target, self.body.tensors)
            case ".csv":
                files.write_csv(target, *self.rows())
            case ".json":
                files.write_json(target, self.document())
            case ending if ending in PICTURES:
                self.image().save(target)
            case other:
                raise ValueError(
                    f"{target} ends in {other or 'nothing'}: write .safetensors (which `load` "
                    "reads), .npz, .npy, .csv, .json, or a picture's ending such as .png"
                )
        return target

    def document(self) -> dict[str, Any]:
        """Everything as JSON can hold it; what is not finite is None."""
        arrays = {name: files.plain(x) for name, x in self.body.tensors.items()}
        return {**self.body.fields, **arrays}

    @classmethod
    @abstractmethod
    def lift(cls, document: Mapping[str, Any]) -> Body:
        """The body of an answer that came as JSON: its lists as the arrays they stand for."""
