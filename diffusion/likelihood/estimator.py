"""The choice of the bound's terms to evaluate: strata of steps and their weights.

A choice is resolved before any network call. It takes all or some terms of the chain of all T
steps, or those of a chain of N steps, which has another, lower bound and costs N evaluations. The
estimate is

    K = prior + sum over chosen terms of weight * term,     weight = steps in the stratum

It is unbiased for any strata, since one step is drawn uniformly from each. Its variance is the sum
of the variance of the last step's draws and

    sum over strata of k * sum over its k steps of spread_t^2 + (mean_t - their mean)^2

which a profile predicts; strata of equal importance minimise it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Self, final

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffusion.likelihood.uncertainty import Expected
from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise, Stream, counter_noise
from diffusion.profile import Profile, even
from diffusion.space import Convention

_LAST_DRAWS = 8

StrataKind = Literal["even", "importance"]
Spacing = Literal["even", "optimal"]


@final
@dataclass(frozen=True)
class Steps:
    """The terms to evaluate for each example's bound.

    Attributes:
        t: int64 [N, n]: in each row the draws of the last step, then the strata in ascending order.
        s: int64 [N, n]: where each step ends; 0 for the last.
        draw: int64 [N, n]: the noise's step, distinct within a row.
        weight: float64 [n]: the estimate is the prior's part + sum of weight * term.
        last: how many of the n terms are draws of the last step.
        end: where the last step begins: 1, unless the chain skips steps.
        expected: the mean and variance of each stratum's part, if the model has a profile.
    """

    t: Tensor
    s: Tensor
    draw: Tensor
    weight: Tensor
    last: int
    end: int
    expected: Expected | None = None

    @property
    def count(self) -> int:
        """Network evaluations an example."""
        return len(self.weight)

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        return self.t.nbytes + self.s.nbytes + self.draw.nbytes

    def rows(self, index: slice) -> Self:
        """Select examples."""
        return replace(self, t=self.t[index], s=self.s[index], draw=self.draw[index])

    def at(self, row: Tensor, unit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, s and the noise's step of terms, int64 [B] each."""
        return self.t[row, unit], self.s[row, unit], self.draw[row, unit]


@final
@dataclass(frozen=True)
class Strata:
    """A division of a chain's steps 2..T into strata, and the number of draws of the last step.

    Attributes:
        last: draws of the last step.
        edges: int64 [n + 1]: stratum i holds the steps edges[i] < t <= edges[i + 1].
    """

    last: int
    edges: Tensor

    @property
    def count(self) -> int:
        """Network evaluations an example."""
        return self.last + len(self.edges) - 1


def choose_steps(
    T: int,
    rows: Tensor,
    seed: int,
    convention: Convention,
    terms: int | None = None,
    *,
    strata: Strata | None = None,
    path: Tensor | None = None,
    profile: Profile | None = None,
    own: bool = True,
    bits: bool = False,
) -> Steps:
    """Choose all T steps, or `terms` of them per example by unbiased stratified sampling.

    One t is drawn in each stratum. The last step has several draws (up to 8), so that their error
    can be estimated; "paper" needs none.

    Args:
        T: steps of the process.
        rows: int64 [N], indices of the data in the request, which are the noise's rows.
        seed: of the request.
        convention: of the bound.
        terms: network evaluations per example, at least 4; None for all steps.
        strata: strata to use instead of `even_strata`.
        path: int64 [steps + 1], 0 = t_0 < ... < t_steps = T, of a chain that skips steps.
        profile: the model's profile, if any; not with `path`, since it describes all T steps.
        own: whether this is the data's own convention, in which the profile measured the last step.
        bits: whether the data are binary.

    Raises:
        ValueError: too few terms.
    """
    path = torch.arange(T + 1) if path is None else path
    strata = strata or even_strata(len(path) - 1, convention, terms)
    last, edges = strata.last, strata.edges
    size = edges.diff()
    noise = counter_noise(seed, rows.cpu(), 0, Stream.TERM)
    each = torch.empty(len(rows), 0, dtype=torch.long)
    if len(size):
        each = edges[:-1] + 1 + (noise.uniform((len(size),)).double() * size).long()
    ones = torch.ones(len(rows), last, dtype=torch.long)
    place = torch.cat((ones, each), 1)
    # Draws of the last step are numbered past T, so that no two terms of an example share noise.
    draws = T + 1 + torch.arange(last).expand(len(rows), last)
    weight = torch.cat((torch.full((last,), 1 / max(last, 1), dtype=torch.float64), size.double()))
    t, s = path[place], path[place - 1]
    draw = torch.cat((draws, path[each]), 1)
    expected = None if profile is None else Expected.of(profile, edges, own, bits)
    return Steps(t, s, draw, weight, last, int(path[1]), expected)


def even_strata(T: int, convention: Convention, terms: int | None = None) -> Strata:
    """Divide the steps into strata of equal width: `terms` terms in total, or all steps.

    Raises:
        ValueError: too few terms.
    """
    least = min_terms(T, convention)
    if terms is not None and terms < least:
        raise ValueError(f"`terms` is at least {least} for this model, came {terms}")
    last = 0 if convention == "paper" else _LAST_DRAWS
    count = T - 1
    if terms is not None and terms < T - 1 + last:
        last = min(last, max(2, terms // 4, terms - (T - 1)))
        count = terms - last
    edges = torch.arange(count + 1, dtype=torch.float64) * (T - 1) / max(count, 1)
    return Strata(last, edges.round().long() + 1)


def important_strata(profile: Profile, convention: Convention, terms: int) -> Strata:
    """Choose the strata and draws of the last step with the least `predicted_error`.

    Raises:
        ValueError: too few terms, or more than the profile has strata for.
    """
    draws = [0] if convention == "paper" else range(2, _LAST_DRAWS + 1)
    possible = [n for n in draws if 1 <= terms - n <= profile.longest_strata]
    if not possible or terms < min_terms(profile.T, convention):
        least, most = min_terms(profile.T, convention), profile.longest_strata + max(draws)
        raise ValueError(
            f"by importance {least} to {most} `terms` can be chosen for this model, came {terms}: "
            "ask for that many, or for all"
        )
    found = [Strata(n, profile.edges(terms - n)) for n in possible]
    return min(found, key=lambda strata: predicted_error(profile, strata))


def predicted_error(profile: Profile, strata: Strata) -> float:
    """Predict the standard error of an example's bound, nats (root mean square over training data).

    It holds for the data's own convention, or for "paper" if `strata` have no draws of the last
    step.
    """
    spread, mean = profile.spread.cpu(), profile.mean.cpu()
    square, first = (x.cumsum(0)[strata.edges] for x in (spread.square() + mean.square(), mean))
    variance = (strata.edges.diff() * square.diff() - first.diff().square()).sum()
    if strata.last:
        variance = variance + spread[1].square() / strata.last
    return float(variance.clamp_min(0).sqrt())


def strata_for(
    profile: Profile, convention: Convention, target: float, choose: Callable[[int], Strata]
) -> Strata:
    """Find the strata with the fewest terms whose predicted error is at most `target` nats.

    Args:
        profile: the model's profile.
        convention: of the bound.
        target: nats, above 0.
        choose: returns the strata for a number of terms; a ValueError means too many, and all steps
            are used.

    Raises:
        ValueError: `target` is below the error of all the steps.
    """
    whole = even_strata(profile.T, convention)
    floor = predicted_error(profile, whole)
    if target < floor:
        raise ValueError(
            f"one draw of each of the {profile.T} steps leaves a standard error of about "
            f"{floor:.3g} nats, came a `target_error` of {target:g}: ask for more, or for all "
            "terms with several seeds, and average"
        )
    low, high = min_terms(profile.T, convention), whole.count
    best = whole
    while low < high:
        middle = (low + high) // 2
        try:
            found = choose(middle)
        except ValueError:
            high = middle
            continue
        if predicted_error(profile, found) <= target:
            high, best = middle, found
        else:
            low = middle + 1
    return best


def min_terms(T: int, convention: Convention) -> int:
    """Return the fewest terms that give an estimate and its error."""
    return min(T - 1, 2) + (0 if convention == "paper" else 2)


def term_noise(seed: Tensor, row: Tensor, draw: Tensor) -> CounterNoise:
    """Build the noise that draws the terms' x_t given x_0; arguments int64 [B]."""
    return CounterNoise(seed, row, draw, Stream.TERM)


@final
class Choice(BaseModel):
    """A request's choice of terms.

    Attributes:
        terms: network evaluations per example; None for all of the chain's steps.
        strata: strata of equal width, or of equal importance, which give a smaller error with the
            same number of terms.
        target_error: nats; instead of `terms`, use as many as give this standard error for examples
            like the training data.
        steps: steps of the chain; None for all T.
        spacing: spacing of those steps: the profile's best, or even.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    terms: int | None = Field(None, ge=1)
    strata: StrataKind = "even"
    target_error: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    spacing: Spacing = "optimal"

    def resolve(
        self, model: DiffusionModel, rows: Tensor, seed: int, convention: Convention
    ) -> Steps:
        """Choose the terms for the data `rows` (int64 [N], the noise's rows).

        Raises:
            ValueError: settings that exclude each other, or that this model does not support.
        """
        T = model.T
        if self.steps is not None:
            if self.strata != "even" or self.target_error is not None:
                raise ValueError(
                    "importance and errors are known of the chain of all steps: ask for `steps`, "
                    "or for `target_error` or importance"
                )
            path = self.path(model)
            return choose_steps(T, rows, seed, convention, self.terms, path=path)
        strata = self._strata(model, convention)
        return choose_steps(
            T,
            rows,
            seed,
            convention,
            self.terms,
            strata=strata,
            profile=model.profile,
            own=convention == model.space.default_convention,
            bits=not model.process.continuous,
        )

    def path(self, model: DiffusionModel) -> Tensor:
        """Return the chain's times 0 = t_0 < ... < t_N = T, int64 [N + 1]."""
        steps = model.T if self.steps is None else self.steps
        if steps > model.T:
            raise ValueError(f"this model has {model.T} steps, came {steps}: ask for fewer")
        if self.spacing == "even" or steps == model.T:
            return even(model.T, steps)
        return _profile(model).path(steps)

    def _strata(self, model: DiffusionModel, convention: Convention) -> Strata | None:
        important = self.strata == "importance"
        if self.target_error is None:
            if (
                not important
                or self.terms is None
                or self.terms >= even_strata(model.T, convention).count
            ):
                return None
            return important_strata(_profile(model), convention, self.terms)
        if self.terms is not None:
            raise ValueError("`terms` and `target_error` exclude each other: ask for one of them")
        if convention not in (model.space.default_convention, "paper"):
            raise ValueError(
                f"errors are known in convention {model.space.default_convention!r} and 'paper', "
                f"came {convention!r}: ask for `terms`"
            )
        profile = _profile(model)

        def choose(terms: int) -> Strata:
            if important:
                return important_strata(profile, convention, terms)
            return even_strata(model.T, convention, terms)

        return strata_for(profile, convention, self.target_error, choose)


def _profile(model: DiffusionModel) -> Profile:
    if model.profile is None:
        raise ValueError(
            "importance, errors and the best spacing are read from the model's profile, and there "
            "is none: measure it with `python -m training profile NAME --write`, or ask for "
            "`terms` of even strata, or for even `spacing`"
        )
    return model.profile
