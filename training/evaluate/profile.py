"""Measure a model's profile: its errors on training data, step by step.

    x_t ~ q(x_t | x_0) at each measured t, x_0 from the training split, each with two draws

One network call per measured t gives the errors, the terms, and the cost of the jumps from t to
every s < t. Between measured steps, errors and terms are interpolated as powers of t, because they
fall by orders of magnitude in the first few steps. The last step's log-probability, at t = 1, is a
different quantity from the terms of t >= 2, so there is no interpolation between them. All t share
the same data and draws, so that the tables are as smooth in t as the model; paths chosen from noisy
tables would follow the noise.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diffusion.distributions import Normal
from diffusion.likelihood.bound import evaluate
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.process import (
    GaussianPrediction,
    GaussianProcess,
    Prediction,
    VarianceKind,
    variance_terms,
)
from diffusion.profile import Profile, ProfileConfig, pack, shortest

CLOSED: tuple[VarianceKind, ...] = ("lower", "upper", "optimal", "contrast")
"""Variances that need no output of the network; the cost of any jump has a closed form."""
_GROUPS = 32  # of elements with about as much contrast
_LEAST = 1e-30  # nats; replaces 0 before taking logarithms
_ELEMENTS = 2**21  # per batch of jumps: tens of MB
_FACTORS = torch.arange(-4, 25, dtype=torch.float64) / 4  # exponents of 2 to try for `Profile.last`


@torch.inference_mode()
def profiled(
    model: DiffusionModel,
    x_0: Tensor,
    config: ProfileConfig,
    variance: VarianceKind | None = None,
    progress: Callable[[int], None] | None = None,
    gaps: Observation | None = None,
) -> DiffusionModel:
    """Measure a model's profile and return a copy of the model that has it.

    If the variance is not in CLOSED, paths use only the measured steps.

    Args:
        model: in evaluation mode.
        x_0: training data, model units [N, *event]; only the first `config.rows // 2` are used.
        config: how much is measured.
        variance: of the new model; None for the old one's.
        progress: called with the number of network rows just evaluated.
        gaps: which elements of x_0 are not there (`DiffusionModel.left_out`).
    """
    points = measured_points(model.T, config.points)
    closed = (variance or model.variance) in CLOSED
    longest = min(config.longest, model.T if closed else len(points))
    kinds = model.prediction, variance or model.variance
    profile = Profile(model.T, longest, contrast=kinds[1] == "contrast")
    found = DiffusionModel(model.process, model.network, model.space, *kinds, profile)
    found = found.to(model.device).eval()
    tables = ("error", "last") if profile.contrast is None else ("error", "last", "contrast")
    columns: dict[str, list[Tensor]] = {name: [] for name in (*tables, "mean", "spread")}
    costs: list[Tensor] = []
    groups: list[Tensor] = []
    x_0 = x_0[: config.rows // 2].to(model.device)
    for i, t in enumerate(points.tolist()):
        here = _Point(found, x_0, t, config, gaps)
        error = here.error()
        # Set before `terms` and `costs`, whose kernel reads them if the variance is in MEASURED.
        profile.error[t], profile.last[t] = error, here.last(error)
        if profile.contrast is not None:
            groups.append(here.groups())
            profile.contrast[t] = groups[-1][0].mean()
        mean, spread = here.terms()
        for name in tables:
            columns[name].append(getattr(profile, name)[t].cpu())
        columns["mean"].append(mean)
        columns["spread"].append(spread)
        ends = torch.cat((torch.zeros(1, dtype=torch.long), points[:i]))
        ends = ends[:1] if closed else ends
        costs.append(here.costs(ends).mean(1))
        if progress is not None:
            progress(len(here.t))
    for name in tables:
        table = _between(points, torch.stack(columns[name]).log(), model.T).exp()
        getattr(profile, name)[1:] = table.to(model.device)
    _fill_terms(profile, points, columns["mean"], columns["spread"])
    each = None
    if groups:
        each = _between(points, torch.stack(groups).log(), model.T).exp()
    _find_paths(found, points, costs, each)
    return found


@torch.inference_mode()
def measure_terms(
    model: DiffusionModel,
    x_0: Tensor,
    config: ProfileConfig,
    progress: Callable[[int], None] | None = None,
    gaps: Observation | None = None,
) -> None:
    """Measure the mean and spread of the bound's terms again, and update the strata, in place.

    Errors, variances and paths stay the same, so the model's samples do too.

    Args:
        model: in evaluation mode, with a profile.
        x_0: as in `profiled`.
        config: how much is measured.
        progress: called with the number of network rows just evaluated.
        gaps: as in `profiled`.
    """
    profile = model.profile
    if profile is None:
        raise ValueError("the model has no profile whose terms could be measured: make one first")
    points = measured_points(model.T, config.points)
    x_0 = x_0[: config.rows // 2].to(model.device)
    means: list[Tensor] = []
    spreads: list[Tensor] = []
    for t in points.tolist():
        mean, spread = _Point(model, x_0, t, config, gaps).terms()
        means.append(mean)
        spreads.append(spread)
        if progress is not None:
            progress(2 * len(x_0))
    _fill_terms(profile, points, means, spreads)


def measured_points(T: int, points: int | None) -> Tensor:
    """Choose the steps to measure, int64, ascending from 1, 2 to T and denser at small t."""
    count = T if points is None else min(points, T)
    if count < 3:
        return torch.linspace(1, T, count, dtype=torch.float64).round().long()
    place = torch.linspace(0, 1, count - 1, dtype=torch.float64)
    rest = (2 + (T - 2) * place**1.5).round().long()
    rest = rest.maximum(torch.arange(2, count + 1))  # distinct
    return torch.cat((torch.ones(1, dtype=torch.int64), rest))


def closed_costs(model: DiffusionModel, groups: Tensor | None = None) -> Tensor:
    """Compute the expected KL of all jumps t -> s in closed form, nats float64 [T + 1, T + 1].

    E KL = (d / 2) mean of (v / V - 1 + log(V / v) + c_0^2 e / V), with v the posterior's variance
    and V the kernel's, over groups of elements with the same V. Entries outside 1 <= s < t are
    infinite.

    Args:
        model: with a profile.
        groups: for variance "contrast", the contrast and the square error of as many elements each,
            model units squared, float64 [T, 2, G] for t = 1..T; None where V is one number.
    """
    process, profile = model.process, model.profile
    assert isinstance(process, GaussianProcess)
    assert profile is not None
    assert model.variance is not None
    t, s = torch.tril_indices(model.T + 1, model.T + 1, -1)
    t, s = t[s > 0].to(model.device), s[s > 0].to(model.device)
    of_x_0, _, v = process.posterior_coefficients(t, s)
    v_0, v_1, _ = variance_terms(process, model.variance, t, s, profile).unbind(1)
    if groups is None:
        groups = torch.stack((torch.zeros_like(profile.error), profile.error), 1)[1:, :, None]
    found = torch.zeros_like(v)
    for contrast, error in groups.to(v).permute(2, 1, 0):
        V = v_0 + v_1 * contrast[t - 1]
        found += v / V - 1 - (v / V).log() + of_x_0.square() * error[t - 1] / V
    costs = torch.full((model.T + 1, model.T + 1), torch.inf, dtype=torch.float64)
    costs[t.cpu(), s.cpu()] = (model.space.dims / 2 / groups.shape[2] * found).cpu()
    return costs


def table(model: DiffusionModel) -> str:
    """Format the profile at some of the steps as a text table."""
    profile = model.profile
    if profile is None:
        return "not profiled"
    T = model.T
    lines = ["     t   sqrt(error)   sqrt(last)   mean term (nats)   spread (nats)"]
    for t in sorted({1, 2, *(max(1, round(T * i / 10)) for i in range(11))}):
        root, last = profile.error[t].sqrt(), profile.last[t].sqrt()
        lines.append(
            f"{t:6}   {root:11.4g}  {last:11.4g}   {profile.mean[t]:16.4f}   "
            f"{profile.spread[t]:13.4f}"
        )
    return "\n".join(lines)


class _Point:
    """The measurements at one t, from one network call.

    Args:
        model: the model.
        x_0: [n / 2, *event], model units.
        t: the step.
        config: gives the seed of the noise.
        gaps: as in `profiled`.
    """

    def __init__(
        self,
        model: DiffusionModel,
        x_0: Tensor,
        t: int,
        config: ProfileConfig,
        gaps: Observation | None,
    ) -> None:
        self.model, self.x_0 = model, x_0.repeat_interleave(2, 0)
        self.t = torch.full((len(self.x_0),), t, device=x_0.device)
        noise = counter_noise(config.seed, torch.arange(len(self.x_0)), 0, Stream.TRAINING)
        self.x_t = model.process.marginal(self.x_0, self.t).sample(noise)
        place = torch.arange(len(x_0), device=x_0.device).repeat_interleave(2)
        told = None if gaps is None else gaps.rows(place)
        self.prediction: Prediction = model.predict(self.x_t, self.t, observation=told)

    def error(self) -> Tensor:
        """Compute E |x_0 - x_0hat|^2 / d, kept above 0 even for a perfect network."""
        found = (self.x_0 - self.prediction.x_0).double().square().mean()
        return found.clamp_min(torch.finfo(torch.float32).tiny)

    def groups(self) -> Tensor:
        """Return means of the contrast and the square error over groups of elements, [2, G].

        Of a model with variance "contrast": elements are grouped by it, as many in each group.
        """
        prediction = self.prediction
        assert isinstance(prediction, GaussianPrediction)
        assert prediction.extra is not None  # as it is clipped
        contrast, order = prediction.extra.double().exp().flatten().sort()
        errors = (self.x_0 - prediction.x_0).double().square().flatten()[order]
        count = min(_GROUPS, len(order))
        size = len(order) // count
        found = torch.stack((contrast, errors))[:, : size * count]
        return found.view(2, count, size).mean(2).clamp_min(_LEAST).cpu()

    def terms(self) -> tuple[Tensor, Tensor]:
        """Compute the mean and spread of the bound's term, nats; at t = 1 the last step's part."""
        terms = self.costs(self.t[:1].cpu() - 1).view(-1, 2).neg()
        return terms.mean(), (terms.diff(dim=1).square().mean() / 2).sqrt()

    def last(self, error: Tensor) -> Tensor:
        """Find the variance of a step to x_0 that maximises the mean of its part of the bound."""
        space = self.model.space
        if space.levels is None:
            return error
        tried = error * 2 ** _FACTORS.to(error.device)
        mean = self.prediction.x_0
        shape = (1,) * mean.ndim
        found = [Normal(mean, v.view(shape)).log_mass(self.x_0, space).mean() for v in tried]
        return tried[torch.stack(found).argmax()]

    def costs(self, ends: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || p(x_s | x_t)) for each s of `ends`, nats float64 [len(ends), n].

        At s = 0 it is minus the last step's part, in the data's own convention.
        """
        rows, convention = len(self.t), self.model.space.default_convention
        together = max(1, _ELEMENTS // self.x_0.numel())
        found = []
        for some in ends.to(self.t.device).split(together):
            row = torch.arange(rows, device=self.t.device).repeat(len(some))
            found.append(
                -evaluate(
                    self.model,
                    self.prediction.rows(row),
                    self.x_0[row],
                    self.x_t[row],
                    self.t[row],
                    convention,
                    some.repeat_interleave(rows),
                )
            )
        return torch.cat(found).double().cpu().view(len(ends), rows)


def _between(points: Tensor, values: Tensor, T: int, first: int = 1) -> Tensor:
    """Interpolate values [P, ...] to t = first..T, linearly in log t between `points` [P]."""
    every = np.log(np.arange(first, T + 1))
    columns = values.flatten(1).unbind(1) if values.ndim > 1 else [values]
    found = [torch.from_numpy(np.interp(every, points.double().log(), one)) for one in columns]
    return torch.stack(found, 1).view(len(every), *values.shape[1:])


def _fill_terms(profile: Profile, points: Tensor, mean: list[Tensor], spread: list[Tensor]) -> None:
    """Fill in the tables of terms from the measured points, and the strata from the tables."""
    means, spreads = torch.stack(mean), torch.stack(spread)
    profile.mean[1], profile.spread[1] = means[0], spreads[0]
    if profile.T == 1:
        return
    # For t > 1 the mean is minus a divergence, up to rounding.
    rest = points[1:]
    for table, values, sign in ((profile.mean, -means[1:], -1), (profile.spread, spreads[1:], 1)):
        logs = values.clamp_min(_LEAST).log()
        table[2:] = sign * _between(rest, logs, profile.T, first=2).exp().to(table.device)
        table[rest] = sign * values.to(table.device)  # without the clamp
    profile.strata.copy_(pack(shortest(_strata_costs(profile), profile.longest_strata)[0]))


def _strata_costs(profile: Profile) -> Tensor:
    """Compute the variance of each stratum a < t <= b with one draw, at [b - 1, a - 1], [T, T].

    (b - a) sum of (spread_t^2 + (mean_t - their mean)^2), as in `diffusion.likelihood.estimator`.
    """
    mean, spread = profile.mean.cpu()[1:], profile.spread.cpu()[1:]
    first, second = mean.cumsum(0), (mean.square() + spread.square()).cumsum(0)
    place = torch.arange(profile.T, dtype=torch.float64)
    size, sums, squares = (x[:, None] - x for x in (place, first, second))
    return size * squares - sums.square()


def _find_paths(
    model: DiffusionModel, points: Tensor, costs: list[Tensor], groups: Tensor | None
) -> None:
    """Fill in the best paths, over all steps if costs have a closed form, else over `points`."""
    profile = model.profile
    assert profile is not None
    if model.variance in CLOSED:
        nodes = torch.arange(model.T + 1)
        cost = closed_costs(model, groups)
        cost[1:, 0] = _between(points, torch.cat(costs), model.T)
    else:
        nodes = torch.cat((torch.zeros(1, dtype=torch.long), points))
        cost = torch.full((len(nodes), len(nodes)), math.inf, dtype=torch.float64)
        for i, known in enumerate(costs):
            cost[i + 1, : i + 1] = known
    paths, totals = shortest(cost, profile.longest)
    profile.paths.copy_(pack([nodes[path] for path in paths]))
    profile.costs.copy_(totals)
