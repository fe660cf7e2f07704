"""The service's answers, as frozen records of numpy arrays in data units.

Images are [channels, height, width] in 0..255, vectors [D] in the units of their data set, bits
0/1. `load` reads what `save` wrote as .safetensors. A response is also a sequence, and an array to
numpy: of its main array. A notebook shows it as a picture or a table.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

import numpy as np

from noneq import display, files, images, tables
from noneq.codec import PARTS, Array, Body, Timing, decode, encode
from noneq.errors import MissingExtra, NotPictured, UnreadableAnswer
from noneq.models import Column, read_columns

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image

Rows = tuple[Sequence[str], Sequence[Sequence[object]]]
Index = int | slice | Sequence[int] | Array  # of an example, or of several


@dataclass(frozen=True, eq=False, repr=False)
class Response(ABC):
    """The fields and methods of all responses. Abstract.

    Attributes:
        body: everything received: plain fields, and the arrays by name.
        timing: request id and timings; not saved.
    """

    kind: ClassVar[str]
    needed: ClassVar[tuple[str, ...]]

    body: Body
    timing: Timing = Timing()  # noqa: RUF009  (frozen)

    def __post_init__(self) -> None:
        present = {*self.body.fields, *self.body.tensors}
        missing = [name for name in ("model", "seed", *self.needed) if name not in present]
        if missing:
            raise UnreadableAnswer(
                f"an answer of this kind ({self.kind}) has {', '.join(missing)}; received "
                f"{', '.join(sorted(present)) or 'nothing'}"
            )

    def __repr__(self) -> str:
        parts = [f"model={self.model!r}", f"seed={self.seed}"]
        tensors = sorted(self.body.tensors.items())
        parts += [f"{name}={x.dtype}{list(x.shape)}" for name, x in tensors]
        return f"{type(self).__name__}({', '.join(parts)})"

    def __len__(self) -> int:
        return len(self.numpy())

    def __iter__(self) -> Iterator[Array]:
        return iter(self.numpy())

    def __getitem__(self, index: Index) -> Array:
        found: Array = self.numpy()[index]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:  # noqa: ANN401
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def _repr_png_(self) -> bytes | None:
        """Return the picture for a notebook; None for numbers of named columns."""
        if self.body.fields.get("columns"):
            return None
        try:
            return images.to_png(self.pixels())
        except (MissingExtra, NotPictured):
            return None

    def _repr_html_(self) -> str:
        """Return the picture or the table, with what it is of, for a notebook."""
        png = self._repr_png_()
        if png is None:
            return display.table(*self.rows(), self.notes())
        return display.picture(png, self.pixels().shape[1], self.notes())

    @property
    def model(self) -> str:
        """The name of the model that answered."""
        return str(self.body.fields["model"])

    @property
    def seed(self) -> int:
        """The seed, with which the same request gives the same answer."""
        return int(self.body.fields["seed"])

    @property
    def checksum(self) -> str:
        """SHA-256 of the model's file that answered; empty from an older service."""
        return str(self.body.fields.get("checksum", ""))

    @property
    def exact(self) -> bool:
        """Whether the same request and seed give the same bits, whatever the service's load."""
        return bool(self.body.fields.get("exact", False))

    @property
    def network_evaluations(self) -> int:
        """Rows put through the network."""
        return int(self.body.fields.get("network_evaluations", 0))

    def elements(self, count: int) -> list[str]:
        """Name an example's elements by the model's columns, or x0, x1, ..."""
        return list(self.body.fields.get("columns") or (f"x{i}" for i in range(count)))

    @property
    def table(self) -> tuple[Column, ...] | None:
        """The columns of a table; None for other data. A category is its place among `labels`."""
        return read_columns(self.body.fields.get("table"))

    def frame(self) -> "pandas.DataFrame":
        """Return `rows` as a pandas DataFrame; raise MissingExtra without pandas."""
        return tables.frame(*self.rows())

    @abstractmethod
    def numpy(self) -> Array:
        """Return the main array."""

    def _cells(self, flat: Array) -> list[list[Any]]:
        """Return rows [N, J] as lists; of a table with labels, and None for gaps."""
        columns = self.table
        if columns is None:
            return flat.tolist()  # type: ignore[no-any-return]
        return [
            [tables.shown(value, column) for value, column in zip(row, columns, strict=True)]
            for row in flat.tolist()
        ]

    @abstractmethod
    def rows(self) -> Rows:
        """Return the main array as a table: names of its columns, and its rows."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Return sentences that belong under a picture or a table: of what, and how good."""

    def image(self) -> "Image":
        """Draw as a Pillow image; raise MissingExtra without Pillow, NotPictured if impossible."""
        return images.to_pillow(self.pixels())

    def pixels(self) -> images.Pixels:
        """Draw as an array, uint8 [height, width, 3]."""
        raise NotPictured(f"{type(self).__name__} are numbers: save them as .csv or .npy")

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the response in the format of the name's ending, and return the path.

        `.safetensors` is the whole response, which `load` reads; `.npz` all its arrays, `.npy` the
        main one, `.csv` one line per example, `.json` everything as text, and `.png` (or another of
        Pillow's formats) the picture.

        Raises:
            ValueError: the ending is unknown.
            MissingExtra, NotPictured: as for `image`.
        """
        target = Path(path)
        match target.suffix.lower():
            case ".safetensors":
                kept = replace(self.body, fields={**self.body.fields, "kind": self.kind})
                files.write(target, encode(kept, "answer")[0])
            case ".npy":
                files.write_npy(target, self.numpy())
            case ".npz":
                files.write_npz(target, self.body.tensors)
            case ".csv":
                files.write_csv(target, *self.rows())
            case ".json":
                files.write_json(target, self.document())
            case ending if ending in files.PICTURES:
                self.image().save(target)
            case other:
                known = ", ".join(files.ENDINGS)
                raise ValueError(f"{target} ends in {other or 'nothing'}: write {known}")
        return target

    def document(self) -> dict[str, Any]:
        """Return everything in a form for JSON; numbers that are not finite are None."""
        arrays = {name: files.to_lists(x) for name, x in self.body.tensors.items()}
        return {**self.body.fields, **arrays}

    def _group(self, prefix: str, names: Sequence[str]) -> Mapping[str, Array] | None:
        """Return the arrays prefix_name by name; None if there are none."""
        found = {name: self.body.tensors.get(f"{prefix}_{name}") for name in names}
        return {name: x for name, x in found.items() if x is not None} or None


class Trajectory(NamedTuple):
    """The states of samples at k + 1 steps from noise to data: data units, not rounded or clipped.

    Attributes:
        t: [k + 1], from T down to 0.
        x: [k + 1, num_samples, *shape]; the last are the samples.
        x_0: the network's estimate of x_0 at each (p(x_0 = 1) for bits); the last equals `x[-1]`.
    """

    t: Array
    x: Array
    x_0: Array


@final
@dataclass(frozen=True, eq=False, repr=False)
class Samples(Response):
    """Draws from p(x_0)."""

    kind = "samples"
    needed = ("samples",)

    @property
    def samples(self) -> Array:
        """[num_samples, *shape], float32."""
        return self.body.tensors["samples"]

    @property
    def trajectory(self) -> Trajectory | None:
        """Intermediate states of the samples, if `frames` were requested."""
        found = self._group("trajectory", Trajectory._fields)
        return None if found is None else Trajectory(**found)

    @property
    def sampler(self) -> Mapping[str, Any]:
        """The sampler that drew the samples, with its settings."""
        return dict(self.body.fields["sampler"])

    def numpy(self) -> Array:
        """`samples`."""
        return self.samples

    def rows(self) -> Rows:
        """Return one row per sample, one column per element."""
        flat = self.samples.reshape(len(self.samples), -1)
        return self.elements(flat.shape[1]), self._cells(flat)

    def notes(self) -> list[str]:
        """Return what was drawn."""
        return [f"{display.number(len(self), 'sample')} of {self.model}, seed {self.seed}"]

    def pixels(self) -> images.Pixels:
        """Draw the samples side by side."""
        return images.sheet(self.samples)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Posterior(Response):
    """Draws from p(x_0) r(x_0), where r is the observation's likelihood."""

    kind = "posterior"
    needed = ("samples", "mean", "method")

    def __post_init__(self) -> None:
        super().__post_init__()
        for note in self.body.fields.get("deprecation") or ():
            warnings.warn(note, DeprecationWarning, stacklevel=2)

    @property
    def samples(self) -> Array:
        """[data, num_samples, *shape], float32."""
        return self.body.tensors["samples"]

    @property
    def mean(self) -> Array:
        """The mean over the samples, [data, *shape]."""
        return self.body.tensors["mean"]

    @property
    def std(self) -> Array | None:
        """The standard deviation over the samples, [data, *shape]; None for one sample."""
        return self.body.tensors.get("std")

    @property
    def weights(self) -> Array:
        """Each sample's weight in `mean`, `std` and `quantiles`, [data, num_samples]; sum 1."""
        count = self.samples.shape[1]
        return np.array(self._each("weights", [1 / count] * count))

    @property
    def quantiles(self) -> Array | None:
        """Quantiles of the samples, [data, quantiles, *shape]; None if none were requested."""
        return self.body.tensors.get("quantiles")

    @property
    def method(self) -> str:
        """The method that drew the samples."""
        return str(self.body.fields["method"])

    @property
    def biased(self) -> bool:
        """Whether the method is biased even with all steps."""
        return bool(self.body.fields.get("biased", False))

    @property
    def diagnostics(self) -> Sequence[Mapping[str, Any]]:
        """How far to trust each example's samples: `ess`, `warning`, `calibration`, ..."""
        return self._each("diagnostics", {})

    @property
    def label(self) -> Sequence[str | None]:
        """The requested label of each example; None without one."""
        return self._each("label", None)

    @property
    def labels(self) -> Sequence[Mapping[str, float]] | None:
        """The mean of p(label | x_0) over each example's samples; None if not requested."""
        found = self._each("labels", None)
        return None if None in found else found

    def _each(self, name: str, absent: object) -> list[Any]:
        results = self.body.fields.get("results", ())
        return [absent if one.get(name) is None else one[name] for one in results]

    def numpy(self) -> Array:
        """`samples`."""
        return self.samples

    def rows(self) -> Rows:
        """Return one row per sample: its example, number, weight and elements."""
        data, count = self.samples.shape[:2]
        elements = self.elements(math.prod(self.mean.shape[1:]))
        each = product(range(data), range(count))
        flat = self._cells(self.samples.reshape(data * count, -1))
        weights = self.weights.ravel().tolist()
        table = [[i, j, w, *x] for (i, j), w, x in zip(each, weights, flat, strict=True)]
        return ["example", "sample", "weight", *elements], table

    def notes(self) -> list[str]:
        """Return what was drawn, and how far to trust it."""
        data, count = self.samples.shape[:2]
        seen = display.number(data, "observation")
        about = f"{self.model} given {seen}, method {self.method}, seed {self.seed}"
        each = f"{display.number(count, 'sample')} each"
        if self.samples.ndim == 5:
            each += ", then their mean, and twice their standard deviation"
        told = [
            f"example {i}: {one['warning']}"
            for i, one in enumerate(self.diagnostics)
            if one.get("warning")
        ]
        fares = dict.fromkeys(one.get("calibration") for one in self.diagnostics)
        return [f"{about}: {each}", *told, *filter(None, fares)]

    def pixels(self) -> images.Pixels:
        """Draw one line per example: its samples, their mean, and twice their deviation."""
        spread = self.std if self.std is not None else np.zeros_like(self.mean)
        return images.strips(self.samples, self.mean, spread)


_COLUMNS = (
    "bound", "standard_error", "bits_per_dim", "relative_to_prior", "rarer_than", "typicality"
)  # fmt: skip


@final
@dataclass(frozen=True, eq=False, repr=False)
class Likelihoods(Response):
    """Lower bounds on log p(x_0), nats, of N data: `bound` = `prior` + `steps` + `last` + `gain`.

    Minus infinity means that the model excludes the example, NaN that the example is too far out
    for the model's arithmetic; `reasons` says which and where.
    """

    kind = "likelihoods"
    needed = ("bound", "standard_error", "relative_to_prior", "convention", "dims")

    @property
    def bound(self) -> Array:
        """The bound K on log p(x_0), nats, float64 [N]."""
        return self.body.tensors["bound"]

    @property
    def standard_error(self) -> Array:
        """The standard error of `bound`, nats, float64 [N]."""
        return self.body.tensors["standard_error"]

    @property
    def relative_to_prior(self) -> Array:
        """K - L_null, nats, float64 [N]: the gain over the prior pi."""
        return self.body.tensors["relative_to_prior"]

    @property
    def rarer_than(self) -> Array | None:
        """The share of held-out data with a larger bound, float64 [N]; None if not measured."""
        return self.body.tensors.get("rarer_than")

    @property
    def typicality(self) -> Array | None:
        """P-values, float64 [N], uniform on held-out data; None if not measured.

        Near 0 an example is unlike held-out data; it may even be likelier than they are.
        """
        return self.body.tensors.get("typicality")

    @property
    def bands(self) -> Mapping[str, Array] | None:
        """The parts of the bound that `typicality` compares, by noise level; None if not measured.

        t [bands, 2] (the least and greatest of each), nats [N, bands], rarer_than [N, bands].
        """
        return self._group("band", ("t", "nats", "rarer_than"))

    @property
    def degrees_of_freedom(self) -> Array | None:
        """Degrees of freedom of `standard_error`, float64 [N]; with few, it is itself uncertain."""
        return self.body.tensors.get("degrees_of_freedom")

    @property
    def interval(self) -> Array | None:
        """95% confidence interval of the exact bound, nats, float64 [N, 2]."""
        return self.body.tensors.get("interval")

    @property
    def uncompared(self) -> str | None:
        """Why `rarer_than` or `typicality` is None, if one is."""
        return self.body.fields.get("uncompared") or None

    @property
    def reasons(self) -> Mapping[int, str]:
        """Why an example has no finite bound, by its index."""
        found: Mapping[str, str] = self.body.fields.get("reasons") or {}
        return {int(i): reason for i, reason in found.items()}

    @property
    def bits_per_dim(self) -> Array:
        """-bound / (log 2 * elements that it is of), float64 [N]: lower is likelier."""
        elements = self.body.tensors.get("elements", self.body.fields["dims"])
        found: Array = -self.bound / (math.log(2) * elements)
        return found

    @property
    def parts(self) -> Mapping[str, Array]:
        """The summands of the bound: prior, steps, last, gain; nats, float64 [N] each."""
        return {name: self.body.tensors[name] for name in PARTS}

    @property
    def per_step(self) -> Mapping[str, Array] | None:
        """Every evaluated term, if requested: t and value [N, terms], weight [terms]."""
        return self._group("term", ("t", "weight", "value"))

    @property
    def columns(self) -> Mapping[str, Array] | None:
        """The bound's parts by a table's columns: nats and rarer_than, [N, J]; NaN for a gap."""
        return self._group("column", ("nats", "rarer_than"))

    @property
    def convention(self) -> str:
        """The convention of `bound`: discretised, density or paper."""
        return str(self.body.fields["convention"])

    def numpy(self) -> Array:
        """`bound`."""
        return self.bound

    def rows(self) -> Rows:
        """Return one row per example."""
        unknown = np.full(len(self.bound), np.nan)
        columns = [getattr(self, name) for name in _COLUMNS]
        rows = zip(*((unknown if x is None else x).tolist() for x in columns), strict=True)
        return _COLUMNS, list(rows)

    def notes(self) -> list[str]:
        """Return of what the bounds are, and why some are missing."""
        about = f"bounds on log p of {self.model}, nats, {self.convention}, seed {self.seed}"
        missing = [f"example {i}: {reason}" for i, reason in self.reasons.items()]
        return [about, *filter(None, [self.uncompared]), *missing]


def load(path: str | PathLike[str]) -> Samples | Posterior | Likelihoods:
    """Load a response that `save` wrote as `.safetensors`.

    Raises:
        UnreadableAnswer: the file holds something else.
        OSError: there is no such file.
    """
    body = decode(Path(path).read_bytes())
    fields = dict(body.fields)
    kind = fields.pop("kind", "none")
    for response in (Samples, Posterior, Likelihoods):
        if response.kind == kind:
            return response(Body(fields, body.tensors))
    raise UnreadableAnswer(f"{path} holds {kind}, expected samples, posterior or likelihoods")
