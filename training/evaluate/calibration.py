"""Calibrate a conditional model: observe held-out data, draw posteriors, and rank the truth.

    y ~ r(y | x_0),    x_1 .. x_n ~ p(x_0 | y)

by method `learned`, or `matched` where noise of a step's own level is on all elements.

Each family of observations that the network was told of in training is measured as training drew
it, and in cases with names. `diffusion.calibration` says what is recorded, and the verdict.
Statistics are of data units, images rounded to their levels, as they are served. Elements of one
example depend on each other, so standard errors are over data.
"""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast, final

import torch
from torch import Tensor

from diffusion.calibration import LEAST_DATA, Calibration, Coverage, OfColumn, Ranks
from diffusion.families import AnyFamily, Family
from diffusion.model import DiffusionModel
from diffusion.noise import Noise, Stream, counter_noise
from diffusion.observation import Observation
from diffusion.posterior import Learned, Matched, sample_posterior
from diffusion.rows import Rows
from diffusion.samplers import Ancestral
from diffusion.space import Space
from diffusion.table import TableSpace
from training.data.dataset import Dataset, checksum, stream_seed
from training.progress import progress_bar

BINS = 10  # of a histogram of ranks, at most
LEVELS = (0.5, 0.8, 0.95)
SCALARS = 6
LIKELIHOOD = "log r"  # of what was seen with noise: a scalar of x_0 and y
TOGETHER = "sum by what was seen"  # the same of what was seen exactly
_FEW = 30  # data for which the variance of a single element counts in that of a coverage
LEAST_ROWS = 20  # held out, below which a table's posteriors are not measured
COUNT, DRAWS, STEPS = 1000, 19, 40  # data of a case, and of each posterior and chain


def calibrate(
    model: DiffusionModel,
    told: Sequence[Family],
    rows: Tensor,
    folder: Path,
    **settings: int,
) -> tuple[Calibration, ...]:
    """Measure all cases of the families told, or those that an interrupted run left.

    Args:
        model: in evaluation mode.
        told: the families.
        rows: held-out data, data units [N, *event].
        folder: where finished cases are kept.
        settings: of `measure`.
    """
    weights = [tensor.cpu() for tensor in model.state_dict().values()]
    key = checksum(*weights, rows).removeprefix("sha256:")[:16]
    words = "-".join(f"{name}{value}" for name, value in settings.items() if name != "batch")
    # Convolutions of a few rows are faster in this layout.
    model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found: list[Calibration] = []
    for family in (part for each in told for part in each.parts):
        for case in family.cases(model.process, model.space):
            if case != family.words and case in {each.case for each in found}:
                continue  # as another family's
            asked = stream_seed(0, f"{family!r} {case} {words}", 0)
            kept = folder / key / f"{asked}.json"
            if not kept.exists():
                one = measure(model, rows, family, case, **settings)
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(one.model_dump_json())
            found.append(Calibration.model_validate_json(kept.read_bytes()))
    return tuple(found)


def certifiable(dataset: Dataset) -> bool:
    """Whether `noneq train` calibrates unasked: pictures take too long, few rows tell nothing."""
    least = LEAST_ROWS if isinstance(dataset.space, TableSpace) else LEAST_DATA
    return dataset.space.kind != "image" and len(dataset.test) >= least


@torch.inference_mode()
def measure(
    model: DiffusionModel,
    rows: Tensor,
    family: Family,
    case: str,
    *,
    count: int = COUNT,
    draws: int = DRAWS,
    steps: int = STEPS,
    seed: int = 1,
    batch: int = 128,
) -> Calibration:
    """Measure a case on `count` data, or on as many as there are.

    Args:
        model: in evaluation mode.
        rows: held-out data, data units [N, *event]; those that the case hides nothing of, or shows
            nothing of, are passed over.
        family: a family of observations.
        case: one of its `cases`.
        count: how many data.
        draws: from each posterior.
        steps: of each chain, at most; T if there are fewer.
        seed: of the noise.
        batch: rows per network call.

    Raises:
        ValueError: fewer than two data or draws.
    """
    if min(count, draws) < 2:
        raise ValueError(f"ranks need two data and two draws or more, came {count} and {draws}")
    space, steps = model.space, min(steps, model.T)
    place, of = torch.arange(len(rows)), stream_seed(seed, case, 0)
    x_0, gaps = space.to_model(rows).to(model.device), space.gaps(rows)
    noise = counter_noise(of, place.to(model.device), 0, Stream.OBSERVATION)
    asked = family.cases(model.process, space)[case]
    seen = asked.observe(model.process, x_0, noise)
    if gaps is not None:
        # A posterior fills gaps too; of these there is no truth.
        seen = Observation(seen.factor.unseen(gaps.to(model.device)), seen.operator)
    exact = seen.factor.exact.cpu()
    exact = space.columns_of(exact if gaps is None else exact | gaps).flatten(1)
    usable = place[seen.count.bool().cpu() & ~exact.all(1)]
    chosen = usable[:: max(1, len(usable) // count)][:count]  # some splits are sorted
    if len(chosen) < 2:
        raise ValueError(
            f"a standard error needs two held-out data or more, came {len(chosen)} ({case}): "
            "hold out more"
        )
    weights, found = torch.stack(list(scalars(space).values())), []
    noisy = seen.factor.noisy
    method = Matched() if Matched.serves(model, seen) else Learned()
    names = [*scalars(space), LIKELIHOOD if noisy else TOGETHER]
    of_table = space if isinstance(space, TableSpace) else None
    standard = space.standard(rows).flatten(1)
    centre = standard.mean(0)
    parts = chosen.split(max(1, batch // draws))
    with progress_bar(len(parts) * steps, "step", case) as bar:
        for i, part in enumerate(parts, 1):
            y = seen.rows(part.to(model.device))
            drawn = sample_posterior(
                model,
                y,
                draws,
                seed=stream_seed(seed, case, i),
                method=method,
                sampler=Ancestral(steps=steps),
            )
            x = space.to_data(drawn.samples.flatten(0, 1)).double().cpu().view(len(part), draws, -1)
            ties = counter_noise(of, part, 1, Stream.OBSERVATION)
            truth = rows[part].double().flatten(1)
            if noisy:
                more = likelihoods(y, space, truth, x)
            else:
                z = standard[part] - centre
                more = together(exact[part], space, z, truth, x)
            found.append(
                Ranked.of(truth, x, exact[part], weights, ties, more[:, :, None], of_table)
            )
            bar.update(steps)
    all_of = Ranked.joined(found)
    crps, crps_error = over_data(all_of.crps)
    return Calibration(
        family=cast(AnyFamily, asked.family),
        case=case,
        method=method.name,
        level=asked.level,
        count=len(chosen),
        draws=draws,
        steps=steps,
        seed=seed,
        ranks=all_of.histograms(names, draws),
        coverage=all_of.coverage(),
        crps=crps,
        crps_error=crps_error,
        columns=() if of_table is None else all_of.columns(of_table.names),
        machine=f"{model.device.type}, {platform.machine()}",
    )


@final
@dataclass(frozen=True)
class Ranked(Rows):
    """Where each of B data is among its draws; NaN where draws and data are all equal.

    Attributes:
        place: (rank + a uniform number) / (draws + 1) of each scalar, uniform for the right
            posterior, float64 [B, S].
        covered: the share of elements that the middle of the draws covers, for each of LEVELS,
            float64 [B, L].
        crps: of a hidden element, in its unit, float64 [B].
        each_covered: whether it covers an element, float64 [B, L, D]; None if not asked for.
        each_crps: of each element, data units, float64 [B, D]; likewise.
    """

    place: Tensor
    covered: Tensor
    crps: Tensor
    each_covered: Tensor | None = None
    each_crps: Tensor | None = None

    @classmethod
    def of(
        cls,
        truth: Tensor,
        x: Tensor,
        exact: Tensor,
        weights: Tensor,
        noise: Noise,
        more: Tensor | None = None,
        space: TableSpace | None = None,
    ) -> Self:
        """Rank B data.

        Args:
            truth: data units, float64 [B, D].
            x: n draws of each, float64 [B, n, D].
            exact: which elements were seen without noise, bool [B, D].
            weights: of the elements in each scalar, float64 [S, D].
            noise: breaks ties, B rows.
            more: further scalars of the draws minus those of the truth, float64 [B, n, K].
            space: of a table, whose columns are measured one by one too; else None.
        """
        D, n = truth.shape[1], x.shape[1]
        off = torch.where(exact[:, None], 0.0, x - truth[:, None])
        if not bool(off.isfinite().all()):
            raise ValueError("a draw is not a finite number: the network returns none")
        sums = off @ weights.mT
        sums = sums if more is None else torch.cat((sums, more), 2)
        u = noise.uniform((D + sums.shape[2],)).double()
        each, place = _place(off, u[:, :D]), _place(sums, u[:, D:])
        levels = torch.tensor(LEVELS, dtype=torch.float64)[:, None]
        inside = ((each[:, None] - 0.5).abs() <= levels / 2).double()
        covered = torch.where(each.isnan()[:, None], torch.nan, inside)
        # With draws in order, sum over pairs j < k of x_k - x_j = sum over j of (2j - n + 1) x_j.
        turn = (2 * torch.arange(n) - n + 1).double()[:, None]
        apart = (turn * off.sort(1).values).sum(1) / (n * (n - 1))
        scores = off.abs().mean(1) - apart
        if space is None:
            scores = torch.where(exact, torch.nan, scores)
            return cls(place, covered.nanmean(2), scores.nanmean(1))
        # Categories are equal or not.
        pairs = (x[:, :, None] != x[:, None]).double().sum((1, 2)) / (n * (n - 1))
        scores = torch.where(space.nominal, (off != 0).double().mean(1) - pairs / 2, scores)
        scores = torch.where(exact, torch.nan, scores)
        mean = (scores / space.affine[1]).nanmean(1)
        return cls(place, covered.nanmean(2), mean, covered, scores)

    def histograms(self, names: Sequence[str], draws: int) -> tuple[Ranks, ...]:
        """Count the places of each scalar in equally wide bins, as many ranks in each.

        Bins that part a rank would test the numbers that break ties, too.
        """
        fitting = (bins for bins in range(min(BINS, draws + 1), 2, -1) if (draws + 1) % bins == 0)
        most = next(fitting, BINS)
        found = []
        for name, place in zip(names, self.place.unbind(1), strict=True):
            bins = (place[~place.isnan()] * most).long().clamp(max=most - 1)
            found.append(Ranks(scalar=name, counts=tuple(bins.bincount(minlength=most).tolist())))
        return tuple(found)

    def coverage(self) -> tuple[Coverage, ...]:
        """Return how often intervals of LEVELS cover an element.

        Where few data are uncertain their variance is little known: it is pooled with that of one
        element, level (1 - level). With fewer than two nothing is returned.
        """
        return _coverage(self.covered)

    def columns(self, names: Sequence[str]) -> tuple[OfColumn, ...]:
        """Return how each column fares that is hidden of two data or more."""
        found: list[OfColumn] = []
        assert self.each_crps is not None  # as `of` was asked
        assert self.each_covered is not None
        for i, name in enumerate(names):
            hidden = int((~self.each_crps[:, i].isnan()).sum())
            if hidden > 1:
                crps, error = over_data(self.each_crps[:, i])
                covered = _coverage(self.each_covered[:, :, i])
                found.append(
                    OfColumn(name=name, count=hidden, coverage=covered, crps=crps, crps_error=error)
                )
        return tuple(found)


def _coverage(of: Tensor) -> tuple[Coverage, ...]:
    """Return the coverage of each level from that of each datum, float64 [B, L]."""
    found: list[Coverage] = []
    if int((~of[:, 0].isnan()).sum()) < 2:
        return ()
    for level, covered in zip(LEVELS, of.unbind(1), strict=True):
        share, error = over_data(covered)
        count = int((~covered.isnan()).sum())
        variance = _FEW * level * (1 - level) + count**2 * error**2
        error = math.sqrt(variance / (count * (_FEW + count)))
        found.append(Coverage(level=level, share=share, standard_error=error))
    return tuple(found)


def scalars(space: Space) -> dict[str, Tensor]:
    """Return weights of the elements, float64 [D], for each scalar whose ranks are counted.

    The elements themselves if they are few; else their sum and random projections, in model units.
    """
    D = space.dims
    scale = space.affine[1].broadcast_to(space.shape).flatten()
    if D <= SCALARS:
        names = space.names or [f"element {i}" for i in range(D)]
        return dict(zip(names, torch.eye(D, dtype=torch.float64), strict=True))
    noise = counter_noise(0, torch.arange(SCALARS - 1), 0, Stream.DATA)
    found = {"sum": 1 / scale}
    for i, weights in enumerate(noise.normal((D,)).double(), 1):
        found[f"projection {i}"] = weights / scale
    return found


def together(exact: Tensor, space: Space, z: Tensor, truth: Tensor, x: Tensor) -> Tensor:
    """Return the sum of the elements hidden times that of those seen, as `likelihoods` does.

    Hidden elements that are drawn whatever was seen have uniform ranks too; by this scalar they
    have not, where the two sums depend on each other.

    Args:
        exact: which elements were seen without noise, bool [B, D].
        space: the data space.
        z: the truth, centred, model units, float64 [B, D].
        truth: data units, float64 [B, D].
        x: n draws of each, data units, float64 [B, n, D].
    """
    scale = space.affine[1].broadcast_to(space.shape).flatten()
    off = torch.where(exact[:, None], 0.0, (x - truth[:, None]) / scale)
    return off.sum(2) * torch.where(exact, z, 0.0).sum(1, keepdim=True)


def likelihoods(seen: Observation, space: Space, truth: Tensor, x: Tensor) -> Tensor:
    """Return log r of n draws minus that of the truth, of what was seen with noise, float64 [B, n].

    Draws that make less of an observation than there is in it may have uniform ranks in every
    scalar of x_0 alone: so have draws of p(x_0). In log r they are too low (Modrák et al. 2023).

    Args:
        seen: the observations, B rows.
        space: the data space.
        truth: data units, float64 [B, D].
        x: n draws of each, data units, float64 [B, n, D].
    """
    B, n, _ = x.shape
    each = torch.cat((truth[:, None], x), 1).view(-1, *space.shape)
    of = seen.rows(torch.arange(B, device=seen.known.device).repeat_interleave(n + 1))
    z = space.to_model(each).to(of.known.device).double()
    found = of.factor.double().log_prob(z, of.known & ~of.factor.exact).cpu().view(B, n + 1)
    return found[:, 1:] - found[:, :1]


def over_data(values: Tensor) -> tuple[float, float]:
    """Return the mean of a value of each example, and its standard error; NaN are left out.

    Raises:
        ValueError: fewer than two are left.
    """
    values = values[~values.isnan()]
    if len(values) < 2:
        raise ValueError(f"a standard error needs two data or more, came {len(values)}")
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def by_column(measured: Sequence[Calibration]) -> str:
    """Format how the columns of a table fare as a Markdown table; "" if there are none."""
    head = [f"{level:.0%} intervals" for level in LEVELS]
    lines = [
        f"| observed | column | data | {' | '.join(head)} | CRPS |",
        "|---|---|---|" + "---|" * len(LEVELS) + "---|",
    ]
    for case in measured:
        for one in case.columns:
            shares = [f"{c.share:.1%} ± {c.standard_error:.1%}" for c in one.coverage]
            covered = " | ".join(shares or ["certain"] * len(LEVELS))
            lines.append(
                f"| {case.case} | {one.name} | {one.count:,} | {covered} "
                f"| {one.crps:.4g} ± {one.crps_error:.2g} |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def table(measured: Sequence[Calibration]) -> str:
    """Format calibrations as a Markdown table."""
    head = [f"{level:.0%} intervals" for level in LEVELS]
    lines = [
        f"| observed | data | draws | steps | p of the ranks | {' | '.join(head)} | CRPS | holds |",
        "|---|---|---|---|---|" + "---|" * len(LEVELS) + "---|---|",
    ]
    for one in measured:
        verdict = "yes" if one.passed else "no" if one.refuted else "too few data"
        shares = [f"{c.share:.1%} ± {c.standard_error:.1%}" for c in one.coverage]
        covered = " | ".join(shares or ["certain"] * len(LEVELS))
        lines.append(
            f"| {one.case} | {one.count:,} | {one.draws} | {one.steps} | {one.p:.2g} | {covered} "
            f"| {one.crps:.4g} ± {one.crps_error:.2g} | {verdict} |"
        )
    return "\n".join(lines)


def _place(off: Tensor, u: Tensor) -> Tensor:
    """Return (rank + u) / (n + 1) of 0 among n numbers, with ties broken by u; NaN if all are 0.

    Args:
        off: draws minus the truth, float64 [B, n, K].
        u: uniform, float64 [B, K].
    """
    below, ties = (off < 0).sum(1), (off == 0).sum(1)
    place = (below + u * (ties + 1)) / (off.shape[1] + 1)
    return torch.where(ties == off.shape[1], torch.nan, place)
