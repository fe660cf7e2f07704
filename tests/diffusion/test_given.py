"""Families of observations: given columns, and whole pixels."""

import pytest
import torch
from torch import Tensor

from diffusion.families import Exact, Given
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.process import GaussianConfig, Process

GIVEN = Given(columns=(1, 3))
KNOWN = torch.tensor([False, True, False, True])


@pytest.fixture
def process() -> Process:
    return GaussianConfig(T=10).build()


@pytest.fixture
def x_0() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def test_the_given_columns_are_seen_exactly_and_no_others(process: Process, x_0: Tensor) -> None:
    found = GIVEN.observe(process, x_0, counter_noise(0, torch.arange(5), 0, Stream.OBSERVATION))
    assert bool((found.known == KNOWN).all())
    assert torch.equal(found.values[:, KNOWN], x_0[:, KNOWN])
    assert not found.factor.noisy
    assert GIVEN.holds(process, found)
    assert Exact().holds(process, found)


@pytest.mark.parametrize(
    ("known", "noise"),
    [
        ([False, True, False, False], 0.0),  # one is missing
        ([True, True, False, True], 0.0),  # one is seen beside them
        ([False, True, False, True], 0.1),
    ],
)
def test_other_observations_are_not_of_this_kind(
    known: list[bool], noise: float, process: Process, x_0: Tensor
) -> None:
    seen = Observation.of_reals(x_0, torch.tensor(known).expand(5, 4), noise)
    assert not GIVEN.holds(process, seen)
    one = Observation.of_reals(x_0, KNOWN.expand(5, 4))
    assert not GIVEN.holds(process, Observation.joined([one, seen]))


@pytest.mark.parametrize(
    ("columns", "event"), [((1, 4), (4,)), ((0, 1), (2,)), ((0,), (1, 2, 2)), ((-1,), (4,))]
)
def test_columns_that_the_data_lack_are_refused(
    columns: tuple[int, ...], event: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="some of a vector's elements, not all, counted from 0"):
        Given(columns=columns).check(event)


def test_images_are_seen_by_whole_pixels(process: Process) -> None:
    x_0, known = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    known[:, :, :2, 1:] = True
    assert Exact().holds(process, process.saw(x_0, known, torch.zeros_like(x_0)))
    known[1, 0, 3, 3] = True  # one colour of a pixel
    assert not Exact().holds(process, process.saw(x_0, known, torch.zeros_like(x_0)))
