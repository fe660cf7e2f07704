"""What the service answers, as frozen records of numpy arrays in data units.

Images are [channels, height, width] in 0..255, vectors [D] in the units of their data set, bits
0/1. The same answer is read from a safetensors file, from the JSON that ends a stream, and from a
file that `save` wrote.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from noneq import images
from noneq.answer import Answer
from noneq.codec import Array, Body, decode
from noneq.errors import UnreadableAnswer


def _float32(value: object) -> Array:
    return np.asarray(value, np.float32)


class Trajectory(NamedTuple):
    """The states of samples at k + 1 steps of their way, data units: not rounded, not clipped.

    Attributes:
        t: [k + 1], from T down to 0.
        x: [k + 1, num_samples, *shape]; the last are the samples.
        x_0: what the network takes x_0 to be at each, of bits p(x_0 = 1); the last is that of `x`.
    """

    t: Array
    x: Array
    x_0: Array


@final
@dataclass(frozen=True, eq=False, repr=False)
class Samples(Answer):
    """Draws from p(x_0)."""

    kind = "samples"
    needed = ("samples",)

    @property
    def samples(self) -> Array:
        """[num_samples, *shape], float32."""
        return self.body.tensors["samples"]

    @property
    def trajectory(self) -> Trajectory | None:
        """Their states on the way, where `frames` were asked for."""
        found = [self.body.tensors.get(f"trajectory_{name}") for name in Trajectory._fields]
        t, x, x_0 = found
        return None if t is None or x is None or x_0 is None else Trajectory(t, x, x_0)

    @property
    def sampler(self) -> Mapping[str, Any]:
        """Which steps were taken."""
        found: Mapping[str, Any] = self.body.fields["sampler"]
        return found

    def numpy(self) -> Array:
        """`samples`."""
        return self.samples

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """A row for each sample, a column for each element."""
        flat = self.samples.reshape(len(self.samples), -1)
        return self.elements(flat.shape[1]), flat.tolist()

    def pixels(self) -> images.Pixels:
        """The samples side by side."""
        return images.sheet(self.samples)

    @classmethod
    def lift(cls, document: Mapping[str, Any]) -> Body:
        """The body of an answer that came as JSON."""
        tensors = {"samples": _float32(document["samples"])}
        if document.get("trajectory") is not None:
            states = document["trajectory"]
            tensors |= {f"trajectory_{name}": _float32(states[name]) for name in ("x", "x_0")}
            tensors["trajectory_t"] = np.array(states["t"])
        plain = {n: x for n, x in document.items() if n not in ("samples", "trajectory")}
        return Body(plain, tensors)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Posterior(Answer):
    """Draws from p(x_0) r(x_0), r what was observed."""

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
        """Over the samples, [data, *shape]."""
        return self.body.tensors["mean"]

    @property
    def std(self) -> Array | None:
        """Over the samples, [data, *shape]; None where there is one sample."""
        return self.body.tensors.get("std")

    @property
    def weights(self) -> Array:
        """What each sample counts in `mean`, `std` and `quantiles`, [data, num_samples]; sum 1."""
        count = self.samples.shape[1]
        return np.array(self._each("weights", [1 / count] * count))

    @property
    def quantiles(self) -> Array | None:
        """Of the samples, [data, quantiles asked for, *shape]; None where none were."""
        return self.body.tensors.get("quantiles")

    @property
    def method(self) -> str:
        """Which method answered."""
        return str(self.body.fields["method"])

    @property
    def biased(self) -> bool:
        """Whether the method misses the posterior even with all steps."""
        return bool(self.body.fields.get("biased", False))

    @property
    def diagnostics(self) -> Sequence[Mapping[str, Any]]:
        """Of each example, how far to trust its samples: `ess`, `log_evidence`, `warning`."""
        return self._each("diagnostics", {})

    @property
    def label(self) -> Sequence[str | None]:
        """Of each example, what it was asked to show; None where nothing was."""
        return self._each("label", None)

    @property
    def labels(self) -> Sequence[Mapping[str, float]] | None:
        """Of each example, the mean of p(label | x_0) over its samples; None where not asked."""
        found = self._each("labels", None)
        return None if None in found else found

    def _each(self, name: str, absent: object) -> list[Any]:
        results = self.body.fields.get("results", ())
        return [absent if one.get(name) is None else one[name] for one in results]

    def numpy(self) -> Array:
        """`samples`."""
        return self.samples

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """A row for each sample: its example, its number, what it counts, its elements."""
        data, count = self.samples.shape[:2]
        elements = self.elements(math.prod(self.mean.shape[1:]))
        each = product(range(data), range(count))
        flat = self.samples.reshape(data * count, -1).tolist()
        weights = self.weights.ravel().tolist()
        table = [[i, j, w, *x] for (i, j), w, x in zip(each, weights, flat, strict=True)]
        return ["example", "sample", "weight", *elements], table

    def pixels(self) -> images.Pixels:
        """A line for each example: its samples, their mean, and twice their deviation."""
        spread = self.std if self.std is not None else np.zeros_like(self.mean)
        return images.strips(self.samples, self.mean, spread)

    @classmethod
    def lift(cls, document: Mapping[str, Any]) -> Body:
        """The body of an answer that came as JSON."""
        names = ("samples", "mean", "std", "quantiles")
        results = document["results"]
        found = {n: [one.get(n) for one in results] for n in names}
        tensors = {n: _float32(x) for n, x in found.items() if None not in x}
        rest = [{n: v for n, v in one.items() if n not in names} for one in results]
        return Body({**document, "results": rest}, tensors)


@final
@dataclass(frozen=True, eq=False, repr=False)
class Likelihoods(Answer):
    """Lower bounds on log p(x_0), nats, of N data: `bound` = `prior` + `steps` + `last` + `gain`.

    Minus infinity says that the model excludes the example, NaN that its arithmetic ends before it
    reaches so far out; `reasons` tells which and where.
    """

    kind = "likelihoods"
    needed = ("bound", "standard_error", "relative_to_prior", "convention", "dims")

    @property
    def bound(self) -> Array:
        """Nats, float64 [N]."""
        return self.body.tensors["bound"]

    @property
    def standard_error(self) -> Array:
        """Of this estimate, nats, float64 [N]."""
        return self.body.tensors["standard_error"]

    @property
    def relative_to_prior(self) -> Array:
        """K - L_null, nats, float64 [N]: gained over pi."""
        return self.body.tensors["relative_to_prior"]

    @property
    def rarer_than(self) -> Array | None:
        """The share of held-out data with a larger bound, float64 [N]; None where not measured."""
        return self.body.tensors.get("rarer_than")

    @property
    def typicality(self) -> Array | None:
        """p-values float64 [N], uniform on held-out data; None where not measured.

        Near 0 an example is unlike held-out ones, to whichever side: it may be likelier than they
        are.
        """
        return self.body.tensors.get("typicality")

    @property
    def bands(self) -> Mapping[str, Array] | None:
        """What `typicality` is made of, by noise level; None where not measured.

        t [bands, 2] the least and greatest of each, nats [N, bands], rarer_than [N, bands].
        """
        found = {name: self.body.tensors.get(f"band_{name}") for name in _BAND}
        return {n: x for n, x in found.items() if x is not None} or None

    @property
    def degrees_of_freedom(self) -> Array | None:
        """Of `standard_error`, float64 [N]: few of them say that it is itself uncertain."""
        return self.body.tensors.get("degrees_of_freedom")

    @property
    def interval(self) -> Array | None:
        """In which the bound without this estimate's noise lies, 95%, nats float64 [N, 2]."""
        return self.body.tensors.get("interval")

    @property
    def uncompared(self) -> str | None:
        """Why `rarer_than` or `typicality` is None, where one is."""
        found = self.body.fields.get("uncompared")
        return None if found is None else str(found)

    @property
    def reasons(self) -> Mapping[int, str]:
        """Why there is no finite bound, by the example's place."""
        found: Mapping[str, str] = self.body.fields.get("reasons") or {}
        return {int(place): reason for place, reason in found.items()}

    @property
    def bits_per_dim(self) -> Array:
        """-bound / (log 2 * elements of an example), float64 [N]: lower is likelier."""
        return -self.bound / (math.log(2) * int(self.body.fields["dims"]))

    @property
    def parts(self) -> Mapping[str, Array]:
        """What the bound is the sum of: prior, steps, last, gain; nats, float64 [N] each."""
        return {name: self.body.tensors[name] for name in _PARTS}

    @property
    def per_step(self) -> Mapping[str, Array] | None:
        """Every evaluated term, where asked for: t and value [N, terms], weight [terms]."""
        found = {name: self.body.tensors.get(f"term_{name}") for name in _TERM}
        return {n: x for n, x in found.items() if x is not None} or None

    @property
    def convention(self) -> str:
        """What `bound` is the probability of: discretised, density or paper."""
        return str(self.body.fields["convention"])

    def numpy(self) -> Array:
        """`bound`."""
        return self.bound

    def rows(self) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
        """A row for each example."""
        unknown = np.full(len(self.bound), np.nan)
        columns = [getattr(self, name) for name in _SCORES]
        rows = zip(*((unknown if x is None else x).tolist() for x in columns), strict=True)
        return _SCORES, list(rows)

    @classmethod
    def lift(cls, document: Mapping[str, Any]) -> Body:
        """The body of an answer that came as JSON, where null is minus infinity (or no number)."""
        results = document["results"]
        tensors = {
            name: _column([one[name] for one in results], -np.inf)
            for name in ("bound", "relative_to_prior")
        }
        tensors["standard_error"] = _column([one["standard_error"] for one in results], np.nan)
        for name in ("rarer_than", "typicality", "degrees_of_freedom"):
            found = [one.get(name) for one in results]
            if set(found) != {None}:
                tensors[name] = _column(found, np.nan)
        ends = [one.get("interval") or (None, None) for one in results]
        if "degrees_of_freedom" in tensors:
            tensors["interval"] = np.array([_column(pair, np.nan) for pair in ends])
        bands = [one.get("bands") for one in results]
        if bands and None not in bands:
            tensors["band_t"] = np.array([[band["first"], band["final"]] for band in bands[0]])
            for name in ("nats", "rarer_than"):
                rows = [_column([band[name] for band in one], np.nan) for one in bands]
                tensors[f"band_{name}"] = np.array(rows)
        for name in _PARTS:
            tensors[name] = _column([one["parts"][name] for one in results], -np.inf)
        terms = [one["per_step"] for one in results]
        if terms and None not in terms:
            tensors["term_t"] = np.array([[term["t"] for term in one] for one in terms])
            tensors["term_weight"] = np.array([term["weight"] for term in terms[0]])
            values = [_column([term["value"] for term in one], np.inf) for one in terms]
            tensors["term_value"] = np.array(values)
        return Body({n: x for n, x in document.items() if n != "results"}, tensors)


_PARTS = ("prior", "steps", "last", "gain")
_TERM = ("t", "weight", "value")
_BAND = ("t", "nats", "rarer_than")
_SCORES = (
    "bound",
    "standard_error",
    "bits_per_dim",
    "relative_to_prior",
    "rarer_than",
    "typicality",
)


def _column(values: Sequence[float | None], absent: float) -> Array:
    return np.array([absent if value is None else value for value in values], np.float64)


def load(path: str | PathLike[str]) -> Samples | Posterior | Likelihoods:
    """An answer that `save` wrote as `.safetensors`.

    Raises:
        UnreadableAnswer: the file holds none.
        OSError: there is no such file.
    """
    body = decode(Path(path).read_bytes())
    kinds: dict[str, type[Samples | Posterior | Likelihoods]] = {
        kind.kind: kind for kind in (Samples, Posterior, Likelihoods)
    }
    fields = dict(body.fields)
    kind = str(fields.pop("kind", "none"))
    if kind not in kinds:
        raise UnreadableAnswer(f"{path} holds an answer of kind {kind}; known: {', '.join(kinds)}")
    return kinds[kind](Body(fields, body.tensors))
