"""Calibration: whether posteriors of a conditional model hold on held-out data.

    y ~ r(y | x_0),    x_1 .. x_n ~ p(x_0 | y)    =>    the rank of x_0 among them is uniform

For the right posterior x_0 and the draws are exchangeable (Talts et al. 2018). So the rank of any
scalar of x_0, with ties broken at random, is uniform, and the middle L of n draws covers an element
in a share L of cases. That remains so among the cases in which x_0 and the draws are not all
equal, and only those are counted: where nothing is uncertain there is nothing to test.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator

from diffusion.artefact import Frozen
from diffusion.families import AnyFamily, Family

#: The chance with which the ranks of a right posterior refute it, all scalars of a case together.
FALSE_ALARM = 0.01
#: A case fails if intervals cover this much more or less than they should, beyond doubt.
MOST_OFF = 0.03
_DOUBT = 3.0  # standard errors
#: Fewer data than this certify nothing.
LEAST_DATA = 200


class Ranks(Frozen):
    """The histogram of one scalar's ranks.

    Attributes:
        scalar: its name.
        counts: how many ranks are in each of equally wide bins.
    """

    scalar: str
    counts: tuple[int, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if min(self.counts) < 0:
            raise ValueError(f"`counts` are 0 or more, came {list(self.counts)}")
        return self

    @property
    def chi_square(self) -> float:
        """The statistic of uniformity, sum of (count - expected)^2 / expected."""
        expected = sum(self.counts) / len(self.counts)
        return sum((count - expected) ** 2 for count in self.counts) / max(expected, 1e-9)

    @property
    def degrees(self) -> int:
        """Its degrees of freedom."""
        return len(self.counts) - 1

    @property
    def p(self) -> float:
        """The chance that uniform ranks have a statistic at least as large."""
        half = torch.tensor([self.degrees, self.chi_square], dtype=torch.float64) / 2
        return float(torch.special.gammaincc(*half))


class Coverage(Frozen):
    """How often the middle `level` of the draws covers an element; a mean over data.

    Attributes:
        level: the share of draws in the interval.
        share: the share of elements that it covers.
        standard_error: of `share`, over data.
    """

    level: float = Field(gt=0, lt=1)
    share: float = Field(ge=0, le=1)
    standard_error: float = Field(ge=0)

    @property
    def off(self) -> bool:
        """Whether it covers too much or too little, beyond doubt."""
        gap = abs(self.share - self.level)
        return gap > MOST_OFF and gap > _DOUBT * self.standard_error


class OfColumn(Frozen):
    """How posteriors of one column fare.

    Attributes:
        name: of the column.
        count: how many data had it hidden.
        coverage: of each level; none if fewer than two data were uncertain.
        crps: the continuous ranked probability score, data units; of a category half the Brier
            score.
        crps_error: its standard error, over data.
    """

    name: str
    count: int = Field(ge=2)
    coverage: tuple[Coverage, ...] = ()
    crps: float
    crps_error: float = Field(ge=0)


class Calibration(Frozen):
    """One kind of observation of held-out data, and how their posteriors fare.

    Attributes:
        family: the family of observations: of `Metadata.told`, or a part of one.
        case: which of its observations, in words.
        method: that drew the posteriors: "learned", or "matched", of which no network is told.
        level: of the noise, where that is always the same: a standard deviation in model units, or
            a flip probability.
        split: of the data.
        count: how many data.
        draws: from each posterior.
        steps: of each chain.
        seed: of the noise.
        ranks: of each scalar.
        coverage: of each level; none if fewer than two data were uncertain.
        crps: the continuous ranked probability score of a hidden element, E|x_j - x_0| -
            E|x_j - x_k| / 2 over pairs of different draws; a mean over data. In data units; of a
            table's columns in units of their spread, and of categories with |x - y| = 0 or 1.
        crps_error: its standard error, over data.
        columns: of a table, those that were hidden of two data or more.
        machine: the machine that measured it.
    """

    family: AnyFamily
    case: str
    method: Literal["learned", "matched"] = "learned"
    level: float | None = Field(default=None, gt=0)
    split: str = "test"
    count: int = Field(ge=2)
    draws: int = Field(ge=2)
    steps: int = Field(ge=1)
    seed: int = 0
    ranks: tuple[Ranks, ...] = Field(min_length=1)
    coverage: tuple[Coverage, ...]
    crps: float
    crps_error: float = Field(ge=0)
    columns: tuple[OfColumn, ...] = ()
    machine: str | None = None

    @property
    def p(self) -> float:
        """The chance that a right posterior has ranks as uneven; Bonferroni over the scalars."""
        return min(1.0, len(self.ranks) * min(each.p for each in self.ranks))

    @property
    def refuted(self) -> bool:
        """Whether the data say that these are not the right posteriors.

        Of right ones they say so with a chance of at most `FALSE_ALARM` by their ranks, and a
        further .3 % a level by their intervals.
        """
        return self.p < FALSE_ALARM or any(each.off for each in self.coverage)

    @property
    def passed(self) -> bool:
        """Whether the posteriors are not refuted by data that are enough to see a large error."""
        return self.count >= LEAST_DATA and not self.refuted

    @property
    def fault(self) -> str:
        """What refutes it, in words."""
        data = f"on {self.count:,} held-out data ({self.case})"
        if self.p < FALSE_ALARM:
            return f"ranks as uneven have a chance of {self.p:.2g} {data}"
        worst = max(self.coverage, key=lambda each: abs(each.share - each.level))
        share = f"{worst.share:.1%} ± {worst.standard_error:.1%}"
        return f"{worst.level:.0%} intervals cover {share} {data}"

    def __str__(self) -> str:
        data = f"on {self.count:,} held-out data ({self.case})"
        if not self.coverage:
            return f"all draws are the truth {data}"
        widest = max(self.coverage, key=lambda each: each.level)
        share, error = widest.share, widest.standard_error
        return f"{widest.level:.0%} intervals cover {share:.1%} ± {error:.1%} {data}"


def certified(told: Sequence[Family], measured: Sequence[Calibration]) -> tuple[Family, ...]:
    """Return the families of training that were measured, or parts, all of whose cases passed."""

    def passed(family: Family) -> bool:
        own = [each for each in measured if each.method == "learned"]
        cases = [each.passed for each in own if family.includes(each.family)]
        return any(each.family == family for each in own) and all(cases)

    each = dict.fromkeys(one for family in told for one in (family, *family.parts))
    return tuple(filter(passed, each))
