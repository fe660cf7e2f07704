"""Families of observations: what they draw, and that each holds what it drew and nothing else."""

import math

import pytest
import torch
from torch import Tensor

from diffusion.families import AnyFamily, Exact, Given, Noisy, Pattern, observe_some
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.operators import Dense
from diffusion.process import BinomialProcess, GaussianProcess, Process
from diffusion.schedule import InverseTimeSchedule, LogSnrSchedule
from diffusion.space import DataSpace

GAUSSIAN = GaussianProcess(LogSnrSchedule(first=8.0, last=-8.0).beta(20))
BINOMIAL = BinomialProcess(InverseTimeSchedule().beta(20), 0.3)
IMAGES: tuple[Pattern, ...] = ("scattered", "half", "box", "blobs")


def data(event: tuple[int, ...], rows: int, process: Process = GAUSSIAN) -> Tensor:
    x = torch.randn(rows, *event, generator=torch.Generator().manual_seed(1))
    return x if process.continuous else (x > 0.5).float()


def observed(
    family: AnyFamily, event: tuple[int, ...] = (6,), rows: int = 4000, process: Process = GAUSSIAN
) -> tuple[Tensor, Observation]:
    x_0 = data(event, rows, process)
    return x_0, family.observe(process, x_0, counter_noise(2, torch.arange(rows), 3))


@pytest.mark.parametrize("process", [GAUSSIAN, BINOMIAL])
def test_exact_values_are_the_data_and_a_third_of_them_are_seen(process: Process) -> None:
    """The rate is the square of a uniform number: 1/3 in the mean, 4/45 its variance."""
    x_0, seen = observed(Exact(), process=process)
    known = seen.known
    assert torch.equal(seen.values[known], x_0[known])
    assert torch.equal(seen.factor.exact, known)
    shares = known.double().mean(1)
    assert abs(float(shares.mean()) - 1 / 3) < 4 * float(shares.std()) / math.sqrt(4000)
    assert float(shares.var()) == pytest.approx(4 / 45 + (1 / 3 - 1 / 5) / 6, rel=0.1)


def test_noise_is_of_one_level_that_is_uniform_on_a_log_scale() -> None:
    x_0, seen = observed(Noisy(levels=(0.1, 1.0), whole=0.25))
    known, level = seen.known, seen.factor.noise
    z = ((seen.values - x_0) / level)[known].double()
    assert abs(float(z.mean())) < 4 / math.sqrt(len(z))
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / len(z))
    row = torch.where(known, level, torch.nan).nanmean(1)
    assert bool(((level - row[:, None])[known].abs() < 1e-5).all())
    place = (row[~row.isnan()].double().log() - math.log(0.1)) / math.log(10)
    assert abs(float(place.mean()) - 0.5) < 4 / math.sqrt(12 * len(place))
    assert 0 <= float(place.min()) < 0.01
    assert 0.99 < float(place.max()) <= 1 + 1e-6
    whole = float(known.all(1).double().mean())  # 1/4, and scattered ones: E u^12 = 1/13 of 3/4
    assert abs(whole - (0.25 + 0.75 / 13)) < 4 * math.sqrt(whole * (1 - whole) / 4000)


def test_bits_flip_at_the_level_told() -> None:
    x_0, seen = observed(Noisy(levels=(0.199, 0.201), whole=1.0), process=BINOMIAL)
    flipped = (seen.values != x_0).double()
    assert abs(float(flipped.mean()) - 0.2) < 4 * math.sqrt(0.16 / flipped.numel())
    assert bool(((seen.factor.noise - 0.2).abs() < 0.002).all())


def test_a_half_is_one_side_of_a_straight_cut() -> None:
    """Rows or columns that are seen are the first or the last of them, 1/5 to 4/5."""
    known = observed(Exact(patterns=("half",)), (2, 10, 10), 500)[1].known
    assert torch.equal(known[:, 0], known[:, 1])
    down, across = known[:, 0].all(2), known[:, 0].all(1)
    upright = down.any(1)
    assert torch.equal(upright, ~across.any(1))
    lines = torch.where(upright[:, None], down, across)
    assert bool((lines.diff(dim=1).sum(1) == 1).all())
    assert bool(((lines.sum(1) >= 2) & (lines.sum(1) <= 8)).all())
    for share in (upright, lines[:, 0]):
        assert abs(float(share.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(500)


def test_a_box_hides_a_rectangle() -> None:
    hidden = ~observed(Exact(patterns=("box",)), (1, 16, 16), 500)[1].known[:, 0]
    down, across = hidden.any(2), hidden.any(1)
    assert torch.equal(hidden, down[:, :, None] & across[:, None, :])
    for lines in (down, across):
        assert bool((lines.int().diff(dim=1).abs().sum(1) <= 2).all())
        assert int(lines.sum(1).min()) >= 3
        assert int(lines.sum(1).max()) <= 13
        assert bool(lines.any(0).all())  # anywhere


def test_blobs_hold_together() -> None:
    """Neighbours are seen together far more often than pixels that are far apart."""
    known = observed(Exact(patterns=("blobs",)), (1, 16, 16), 500)[1].known[:, 0].double()
    share = known.mean((1, 2))
    apart = 2 * (share * (1 - share)).mean()
    near = (known[:, 1:] - known[:, :-1]).abs().mean()
    assert float(near) < 0.4 * float(apart)
    assert 0.3 < float(share.mean()) < 0.7


def test_patterns_come_equally_often() -> None:
    """Of two patterns, one of which sees straight halves, half of the rows are such."""
    known = observed(Exact(patterns=("box", "half")), (1, 12, 12), 2000)[1].known[:, 0]
    halves = (known.all(2) | ~known.any(2)).all(1) | (known.all(1) | ~known.any(1)).all(1)
    assert abs(float(halves.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(2000)


@pytest.mark.parametrize("process", [GAUSSIAN, BINOMIAL])
@pytest.mark.parametrize("family", [Exact(), Noisy(), Given(columns=(0, 4))])
def test_a_family_holds_what_it_draws_and_the_others_do_not(
    family: AnyFamily, process: Process
) -> None:
    _, seen = observed(family, rows=200, process=process)
    seen = seen.rows(seen.count > 0)
    assert family.holds(process, seen)
    assert all(family.holds(process, seen.rows(slice(i, i + 1))) for i in range(20))
    assert Exact().holds(process, seen) == (not isinstance(family, Noisy))
    assert Noisy().holds(process, seen) == isinstance(family, Noisy)
    assert not Given(columns=(1,)).holds(process, seen)
    nothing = process.nothing_seen((6,), 2)
    assert not family.holds(process, nothing)


def test_noise_of_two_levels_or_beyond_the_ends_is_not_held() -> None:
    known = torch.tensor([[True, True, False]])
    y, family = torch.zeros(1, 3), Noisy(levels=(0.1, 1.0))
    for noise, held in (
        ([0.1, 0.1, 9.0], True),
        ([1.0, 1.0, 0.0], True),
        ([0.5, 0.6, 0.5], False),
        ([0.05, 0.05, 0.05], False),
        ([1.1, 1.1, 1.1], False),
        ([0.0, 0.0, 0.0], False),
        ([0.0, 0.5, 0.0], False),
    ):
        seen = Observation.of_reals(y, known, torch.tensor([noise]))
        assert family.holds(GAUSSIAN, seen) == held, noise
    operator = Dense(rows=((1.0, 0.5, 0.0),))
    through = Observation.of_linear(operator, torch.zeros(1, 1), (3,), 0.5)
    assert not family.holds(GAUSSIAN, through)
    assert not Exact().holds(GAUSSIAN, through)


@pytest.mark.parametrize("size", [(12, 12), (28, 28), (32, 20)])
def test_halves_and_boxes_are_told_from_other_patterns(size: tuple[int, int]) -> None:
    """By a family of one pattern, every draw; none of another's but by chance, and nothing less."""
    for pattern in IMAGES:
        _, seen = observed(Exact(patterns=(pattern,)), (1, *size), 200)
        seen = seen.rows((seen.count > 1) & (seen.count < math.prod(size)))
        rows = [seen.rows(slice(i, i + 1)) for i in range(len(seen))]
        for other in IMAGES:
            held = sum(Exact(patterns=(other,)).holds(GAUSSIAN, row) for row in rows)
            if pattern in ("half", "box") or other in ("half", "box"):
                assert held == (len(rows) if other == pattern else 0), (pattern, other)
            else:
                assert held > 0.95 * len(rows), (pattern, other)
        assert Exact(patterns=IMAGES).holds(GAUSSIAN, seen)
    thin = torch.ones(1, 1, *size, dtype=torch.bool)
    thin[:, :, 3:5, 3:5] = False  # a box finer than those of training
    seen = Observation.of_reals(torch.zeros(1, 1, *size), thin)
    assert not Exact(patterns=("half", "box")).holds(GAUSSIAN, seen)
    assert Exact(patterns=IMAGES).holds(GAUSSIAN, seen)


def test_patterns_of_images_are_refused_for_vectors() -> None:
    for family in (Exact(patterns=IMAGES), Noisy(patterns=("box",))):
        family.check((1, 8, 8))
        with pytest.raises(ValueError, match="use 'scattered'"):
            family.check((8,))
    Exact().check((8,))


def test_a_share_of_rows_is_told_by_each_family_equally_whatever_their_batch() -> None:
    given, rows = Given(columns=(5,)), 6000
    families = (Exact(), Noisy(whole=1.0), given)
    x_0, place = data((6,), rows), torch.arange(rows)
    found = observe_some(families, 0.6, GAUSSIAN, x_0, counter_noise(4, place, 1))
    assert found.told is not None
    told = found.told.double().mean()
    assert abs(float(told) - 0.6) < 4 * math.sqrt(0.24 / rows)
    noisy = (found.factor.noise > 0).all(1) & found.known.all(1)
    last = (found.known == given.observe(GAUSSIAN, x_0, counter_noise(0, place, 0)).known).all(1)
    # Scattered elements are the last one alone with a chance of B(3/2, 6) / 2 = .0284.
    for each, share in ((noisy, 1 / 3), (last, 1.0284 / 3)):
        of = float((each & found.told).double().mean() / told)
        assert abs(of - share) < 4 * math.sqrt(share * (1 - share) / (0.6 * rows))
    some = place[1000:1500]
    again = observe_some(families, 0.6, GAUSSIAN, x_0[some], counter_noise(4, some, 1))
    for one, other in zip(again.tensors, found.rows(some).tensors, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("family", [Exact(patterns=IMAGES), Noisy(patterns=("half",))])
def test_the_cases_of_images_are_of_the_family(family: AnyFamily) -> None:
    space = DataSpace(kind="image", shape=(1, 8, 8), shift=127.5, scale=128.0, levels=256)
    x_0 = data((1, 8, 8), 50)
    found = family.cases(GAUSSIAN, space)
    for name, case in found.items():
        seen = case.observe(GAUSSIAN, x_0, counter_noise(1, torch.arange(50), 1))
        assert family.holds(GAUSSIAN, seen.rows(seen.count > 0)), name
        assert family.includes(case.family)
    if isinstance(family, Noisy):
        seen = found["noise of 64 on all"].observe(
            GAUSSIAN, x_0, counter_noise(1, torch.arange(50), 1)
        )
        assert bool((seen.factor.noise == 0.5).all())
    else:
        seen = found["left half seen"].observe(GAUSSIAN, x_0, counter_noise(1, torch.arange(50), 1))
        assert bool(seen.known[..., :4].all())
        assert not bool(seen.known[..., 4:].any())
        seen = found["centre hidden"].observe(GAUSSIAN, x_0, counter_noise(1, torch.arange(50), 1))
        assert int(seen.count[0]) == 64 - 16
