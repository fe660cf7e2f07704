"""The bound's terms for held-out examples, to compare others with: reference.safetensors.

The file lies in models/NAME. For each held-out example it holds one draw of the bound's term in
each of many strata, from which an estimate with fewer terms can be redrawn: each stratum of the
request picks one of its steps at random and takes the draw of the file's stratum that holds it.
The held-out estimates are then as noisy as the request's own, and

    rarer_than   = fraction of held-out examples with a larger bound
    typicality p = (1 + number of held-out examples at least as far out) / (1 + N)

are uniform on new held-out data for any number of terms. How far out an example is depends on its
features z: the bound, its prior and last parts, and its terms of t >= 2 in a few bands of noise.

    D^2 = (z - mean)^T cov^-1 (z - mean)

with the mean and covariance of the held-out examples; a held-out example is left out of its own
(in closed form). Negative parts enter as the logarithm of their size, so that too small is as far
out as too large: a blank image has almost no divergence.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple, Self, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffusion.artefact import ArtefactError
from diffusion.likelihood.bound import (
    closed_last,
    combine_parts,
    draw_parts,
    prior_part,
    prior_parts,
)
from diffusion.likelihood.estimator import Choice, Steps
from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from diffusion.space import Convention

FILE = "reference.safetensors"
MOST = 400  # examples in the file
LEAST = 50  # examples needed for a comparison
SMALL = 64  # up to this many elements per example, the network is small and all terms are measured
TERMS = 64  # terms measured for larger examples
BANDS = 6
SEED = 2**62  # of the noise; no request has it by accident
_FLOOR = 0.02  # fraction of a part's mean size that is added before the logarithm
_RIDGE = 1e-6


class Band(NamedTuple):
    """How one part of the bound of N examples compares with held-out examples.

    Attributes:
        name: prior, last or steps.
        first: its smallest t.
        final: its largest t.
        nats: its value for each example, [N].
        rarer_than: the fraction of held-out examples in which it is larger, [N].
    """

    name: Literal["prior", "last", "steps"]
    first: int
    final: int
    nats: Tensor
    rarer_than: Tensor


class Standing(NamedTuple):
    """How N examples compare with held-out ones.

    Attributes:
        rarer_than: [N]; NaN where the bound is NaN.
        typicality: p-values [N]; the smallest possible where the bound is not finite.
        bands: the parts of the bound.
    """

    rarer_than: Tensor
    typicality: Tensor
    bands: tuple[Band, ...]


@final
@dataclass(frozen=True, eq=False)
class Reference:
    """The bound's terms for held-out examples.

    Attributes:
        convention: convention of the last step's draws: the data's own.
        T: steps of the model.
        last: number of draws of the last step.
        edges: int64 [n - last + 1], edges of the strata as in `diffusion.likelihood.estimator`.
        values: nats, float64 [N, n]: draws of the last step, then one per stratum.
        prior: nats, float64 [N].
        paper: nats, float64 [N]: prior and last part in convention "paper".
        columns: nats, float64 [N, J]: the bound's part of each column of a table, from all of the
            terms, NaN for a gap; None for other data.
    """

    convention: Convention
    T: int
    last: int
    edges: Tensor
    values: Tensor
    prior: Tensor
    paper: Tensor
    columns: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def refusal(self, convention: Convention) -> str | None:
        """Say why a bound in this convention cannot be compared; None if it can."""
        if len(self) < LEAST:
            return f"the model ships with {len(self)} held-out examples' terms, {LEAST} are needed"
        if convention not in (self.convention, "paper"):
            return f"held-out examples were measured in convention {self.convention!r} and 'paper'"
        return None

    def rarer_columns(self, parts: Tensor) -> Tensor | None:
        """Return the fraction of held-out rows in which each column's part is larger, [N, J].

        None of data without columns. A column without a part, NaN, has none here.
        """
        if self.columns is None:
            return None
        each = zip(self.columns.T, parts.T, strict=True)
        return torch.stack([_larger(own[~own.isnan()], x) for own, x in each], 1)

    def alike(self, gaps: Tensor) -> Tensor:
        """Whether some held-out row has the same gaps as each of rows, bool [N, J], or none: [N].

        Rows whose gaps come as those of the held-out rows do can be compared with them all.
        """
        if self.columns is None:
            return ~gaps.flatten(1).any(1)
        return (gaps[:, None] == self.columns.isnan()).all(2).any(1)

    def stand(
        self,
        steps: Steps,
        convention: Convention,
        values: Tensor,
        prior: Tensor,
        closed: Tensor | None,
    ) -> Standing:
        """Compare examples with the held-out ones by their terms.

        Args:
            steps: the examples' terms, of the chain of all T steps.
            convention: one that `refusal` accepts.
            values: [N, n], nats, in the order of `steps`.
            prior: [N], from `bound.prior_part`.
            closed: [N], from `bound.closed_last`; None except for "paper".
        """
        crowd = self._crowd(convention, steps.last, tuple(steps.weight[steps.last :].tolist()))
        parts = crowd.parts(values.double(), prior if closed is None else prior + closed)
        bounds = parts.sum(1)
        rarer = _larger(crowd.bounds, bounds)
        far = crowd.far(parts)
        beyond = (crowd.own_far >= far[:, None]).sum(1)
        typicality = (1 + beyond.double()) / (1 + len(self))
        among = [(x, _larger(own, x)) for x, own in zip(parts.T, crowd.own.T, strict=True)]
        bands = [Band("prior", self.T, self.T, *among[0])]
        if steps.last:
            bands.append(Band("last", 1, 1, *among[1]))
        for span, one in zip(crowd.spans, among[len(bands) :], strict=True):
            bands.append(Band("steps", *span, *one))
        return Standing(rarer, typicality, tuple(bands))

    @lru_cache(maxsize=32)  # noqa: B019, references live as long as the process
    def _crowd(self, convention: Convention, last: int, sizes: tuple[float, ...]) -> "_Crowd":
        """Estimate the held-out examples' bounds with `last` draws and strata of these sizes."""
        size = torch.tensor(sizes, dtype=torch.float64)
        edges = torch.cat((torch.zeros(1), size.cumsum(0))) + 1
        dice = torch.Generator().manual_seed(len(sizes))
        chosen = torch.rand(len(self), len(size), generator=dice, dtype=torch.float64)
        t = (edges[:-1] + 1 + (chosen * size).floor()).long()
        # Stratum i holds edges[i] < t <= edges[i + 1].
        stratum = torch.searchsorted(self.edges, t) - 1
        # Reuse the file's draws of the last step if it has too few: their noise is negligible.
        some = torch.rand(len(self), self.last, generator=dice).argsort(1)
        some = some.repeat(1, -(-last // max(self.last, 1)))[:, :last]
        drawn = self.values.gather(1, torch.cat((some, self.last + stratum), 1))
        rest = self.paper if convention == "paper" else self.prior
        return _Crowd.of(drawn, rest, last, size)


@final
@dataclass(frozen=True, eq=False)
class _Crowd:
    """Held-out examples as a request would have estimated them.

    Attributes:
        last: draws of the last step.
        size: steps in each stratum, float64 [n - last].
        groups: int64 [bands + 1], the strata at which bands begin.
        spans: the first and last t of each band.
        own: the examples' parts, nats, float64 [N, parts].
        logs: which parts enter as logarithms, bool [parts].
        floor: added to a part's size before the logarithm, nats, float64 [parts].
        mean: mean of the features, float64 [features].
        root: root of the inverse covariance, float64 [features, features].
        own_far: float64 [N], each example's D^2 with respect to the others.
    """

    last: int
    size: Tensor
    groups: Tensor
    spans: tuple[tuple[int, int], ...]
    own: Tensor
    logs: Tensor
    floor: Tensor
    mean: Tensor
    root: Tensor
    own_far: Tensor

    @property
    def bounds(self) -> Tensor:
        """The bounds of the held-out examples, [N]."""
        return self.own.sum(1)

    @classmethod
    def of(cls, values: Tensor, rest: Tensor, last: int, size: Tensor) -> Self:
        """Build it from terms [N, n], closed-form parts [N], and the strata's sizes."""
        groups = _groups((values[:, last:] * size).abs().mean(0))
        ends = torch.cat((torch.zeros(1, dtype=torch.float64), size.cumsum(0)))[groups] + 1
        spans = tuple((int(a) + 1, int(b)) for a, b in pairwise(ends))
        one = torch.zeros(1)
        found = cls(last, size, groups, spans, one, one, one, one, one, one)
        own = found.parts(values, rest)
        logs, floor = (own <= 1e-6).all(0), _FLOOR * own.abs().mean(0).clamp_min(1e-12)
        found = cls(last, size, groups, spans, own, logs, floor, one, one, one)
        z = found.features(own)
        mean, n = z.mean(0), len(z)
        cov = z.T.cov()
        cov = cov + torch.diag(_RIDGE * cov.diagonal() + 1e-18)
        # Give no weight to a part that is the same for all examples, up to rounding.
        same = cov.diagonal().sqrt() <= 1e-5 * mean.abs() + 1e-8
        cov[same], cov[:, same] = 0.0, 0.0
        cov[same, same] = math.inf
        keep = (~same).nonzero().flatten()
        root = torch.zeros_like(cov)
        inner = torch.linalg.inv(torch.linalg.cholesky(cov[keep][:, keep]))
        root[keep[:, None], keep] = inner
        # Each with respect to the mean and covariance of the others (Sherman and Morrison).
        q = ((z - mean) @ root.T).square().sum(1) / (n - 1)
        own_far = (n - 2) * (n / (n - 1)) ** 2 * q / (1 - n / (n - 1) * q).clamp_min(1e-12)
        return cls(last, size, groups, spans, own, logs, floor, mean, root, own_far)

    def parts(self, values: Tensor, rest: Tensor) -> Tensor:
        """Return the closed-form part, the last part if drawn, and the bands, nats [N, parts]."""
        weighted = values[:, self.last :] * self.size
        found = [rest.double()[:, None]]
        if self.last:
            found.append(values[:, : self.last].mean(1, keepdim=True))
        for a, b in pairwise(self.groups.tolist()):
            found.append(weighted[:, a:b].sum(1, keepdim=True))
        return torch.cat(found, 1)

    def features(self, parts: Tensor) -> Tensor:
        """Return the features z, [N, parts + 1]."""
        sizes = ((-parts).clamp_min(0) + self.floor).log()
        return torch.cat((torch.where(self.logs, sizes, parts), parts.sum(1, keepdim=True)), 1)

    def far(self, parts: Tensor) -> Tensor:
        """Return D^2 [N]; infinite where a part is not finite."""
        z = self.features(parts) - self.mean
        return (z @ self.root.T).square().sum(1).nan_to_num(math.inf, posinf=math.inf)


def measure(
    model: DiffusionModel,
    x_0: Tensor,
    *,
    gaps: Observation | None = None,
    batch: int = 256,
    progress: Callable[[int], None] | None = None,
) -> Reference:
    """Measure the terms of held-out examples x_0 [N, *event], model units.

    `gaps` says which of their elements are not there (`DiffusionModel.left_out`).
    """
    convention = model.space.default_convention
    steps = choice(model).resolve(model, torch.arange(len(x_0)), SEED, convention)
    parts = draw_parts(
        model,
        x_0,
        steps,
        seed=SEED,
        convention=convention,
        observation=gaps,
        batch=batch,
        progress=progress,
    )
    edges = torch.cat((torch.zeros(1), steps.weight[steps.last :].cumsum(0))).round().long() + 1
    prior = prior_part(model, x_0, convention, gaps).cpu()
    last = closed_last(model, x_0, "paper")
    assert last is not None  # of "paper" it has a closed form
    paper = (prior_part(model, x_0, "paper") + last).cpu()
    columns = None
    if model.space.table is not None:
        columns = combine_parts(steps, parts, prior_parts(model, x_0, gaps).cpu())
        if gaps is not None and gaps.gaps is not None:
            columns = columns.masked_fill(model.space.columns_of(gaps.gaps).cpu(), math.nan)
    return Reference(convention, model.T, steps.last, edges, parts.sum(2), prior, paper, columns)


def choice(model: DiffusionModel) -> Choice:
    """Choose the terms to measure for each held-out example."""
    if model.space.dims <= SMALL or model.T < TERMS:
        return Choice()
    if model.profile is None:
        return Choice(terms=TERMS)
    return Choice(terms=min(TERMS, model.profile.longest_strata + 2), strata="importance")


def pick(rows: Tensor, count: int = MOST) -> Tensor:
    """Pick the held-out examples to measure, evenly spread over a split [N, *shape]."""
    return rows[:: max(1, len(rows) // count)][:count]


def fingerprint(model: DiffusionModel) -> str:
    """Hash everything that a bound depends on, to tie a reference to its model."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith("profile.") and name not in ("profile.error", "profile.last"):
            continue
        found.update(name.encode())
        found.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    found.update(str(model.variance).encode())
    return found.hexdigest()


def write(folder: Path, model: DiffusionModel, reference: Reference) -> Path:
    """Write a reference beside its model's artefact and return the path."""
    if not bool(reference.values.isfinite().all()):
        raise ValueError("a held-out example has a term that is no finite number: leave it out")
    path = folder / FILE
    small = torch.float32 if model.space.dims > SMALL else torch.float16
    tensors = {
        "edges": reference.edges.int(),
        "values": reference.values.to(small),
        "prior": reference.prior,
        "paper": reference.paper,
    }
    if reference.columns is not None:
        tensors["columns"] = reference.columns
    header = {
        "convention": reference.convention,
        "T": str(reference.T),
        "last": str(reference.last),
        "model": fingerprint(model),
    }
    save_file({n: x.contiguous() for n, x in tensors.items()}, path, header)
    path.chmod(0o644)  # save_file makes it readable only by its owner; the server may be another
    return path


def read(folder: Path, model: DiffusionModel) -> Reference | None:
    """Read the reference beside an artefact; None if there is no such file.

    Raises:
        ArtefactError: the file holds something else, or belongs to another model.
    """
    path = folder / FILE
    if not path.exists():
        return None
    fix = "measure it anew with `python -m training reference`"
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            edges, values, prior, paper = (
                file.get_tensor(name) for name in ("edges", "values", "prior", "paper")
            )
            columns = file.get_tensor("columns") if "columns" in file.keys() else None  # noqa: SIM118
        T, last = int(header["T"]), int(header["last"])
        if header["model"] != fingerprint(model):
            raise ArtefactError(f"{path}: it belongs to another model: {fix}")
        convention = model.space.default_convention
        n = len(values)
        strata = values.shape[1] - last
        if header["convention"] != convention or model.T != T or len(edges) != strata + 1:
            raise ValueError("its shapes are not the model's")
        if prior.shape != (n,) or paper.shape != (n,) or not bool(values.isfinite().all()):
            raise ValueError("its values are not held-out examples' terms")
        if (model.space.table is None) != (columns is None) or (
            columns is not None and columns.shape != (n, model.space.parts)
        ):
            raise ValueError("its columns are not the model's")
    except (KeyError, SafetensorError, ValueError, IndexError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(f"{path}: it holds no reference: {error}: {fix}") from error
    return Reference(
        convention, T, last, edges.long(), values.double(), prior.double(), paper.double(), columns
    )


def _larger(crowd: Tensor, values: Tensor) -> Tensor:
    """Return the fraction of `crowd` [M] above each of `values` [N]; ties count half."""
    ordered, values = crowd.sort().values, values.contiguous()
    low = torch.searchsorted(ordered, values)
    high = torch.searchsorted(ordered, values, right=True)
    share = 1 - (low + high).double() / (2 * len(crowd))
    return share.where(~values.isnan(), math.nan)


def _groups(weight: Tensor) -> Tensor:
    """Divide strata of weights [n] into at most BANDS bands of equal weight; return the edges."""
    n = len(weight)
    count = min(BANDS, n)
    if not count:
        return torch.zeros(1, dtype=torch.int64)
    before = torch.cat((torch.zeros(1, dtype=torch.float64), weight.double().cumsum(0)))
    wanted = torch.arange(1, count, dtype=torch.float64) / count * before[-1]
    places = [0]
    for i, place in enumerate(torch.searchsorted(before, wanted).tolist()):
        # Each band has at least one stratum and leaves one for each later band.
        places.append(min(max(place, places[-1] + 1), n - (count - 1 - i)))
    return torch.tensor([*places, n])
