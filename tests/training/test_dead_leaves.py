"""Dead leaves follow their laws: radii, stationarity, covariance by quadrature, scale, seeds."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffusion.noise import Stream, counter_noise
from training.data import DeadLeavesConfig, load
from training.data.dead_leaves import draw, radii

KOLMOGOROV = 1.95  # sqrt(N) times the distance stays below it with probability .999
ROWS = 2048


def images(config: DeadLeavesConfig, seed: int = 1, rows: int = ROWS) -> Tensor:
    return draw(config, seed, torch.arange(rows))[:, 0].double()


def uniform(rows: int, seed: int = 5) -> Tensor:
    return counter_noise(seed, torch.arange(rows), 0, Stream.DATA).uniform((4,))


def window_law(r: Tensor, side: int, r_min: float, r_max: float) -> Tensor:
    """Distribution function of r^-3 (side + 2 r)^2 on [r_min, r_max]."""

    def integral(x: Tensor) -> Tensor:
        return -(side**2) / (2 * x**2) - 4 * side / x + 4 * x.log()

    low, high = torch.tensor([r_min, r_max], dtype=torch.float64)
    return (integral(r) - integral(low)) / (integral(high) - integral(low))


def test_radii_of_leaves_in_sight_follow_their_law() -> None:
    side, r_min, r_max = 12, 1.5, 20.0
    r = radii(uniform(20_000)[:, 0], side, r_min, r_max).double().sort().values
    law = window_law(r, side, r_min, r_max)
    steps = torch.arange(len(r) + 1, dtype=torch.float64) / len(r)
    distance = torch.maximum((law - steps[:-1]).abs(), (law - steps[1:]).abs()).max()
    assert float(distance) * math.sqrt(len(r)) < KOLMOGOROV


def test_leaves_in_sight_are_those_of_the_whole_plane_that_can_touch_the_window() -> None:
    side, r_min, r_max = 12, 1.5, 20.0
    u = uniform(100_000, seed=6).double()
    r = (r_min**-2 - u[:, 0] * (r_min**-2 - r_max**-2)).rsqrt()  # p(r) ~ r^-3
    centre = (side + 2 * r_max) * u[:, 1:3] - r_max
    touch = ((centre > -r[:, None]) & (centre < side + r[:, None])).all(1)
    r = r[touch].sort().values
    law = window_law(r, side, r_min, r_max)
    distance = (law - torch.arange(len(r)) / len(r)).abs().max() + 1 / len(r)
    assert len(r) > 5_000
    assert float(distance) * math.sqrt(len(r)) < KOLMOGOROV


def test_every_pixel_has_the_greys_mean_and_variance() -> None:
    config = DeadLeavesConfig(side=8, r_max=16.0)
    x = images(config, rows=4 * ROWS)
    low, high = config.greys
    levels = high - low + 1
    mean = (low + high) / 2
    variance = (levels**2 - 1) / 12 + config.noise**2 + 1 / 12  # the last for the rounding
    z_mean = (x.mean(0) - mean) / (variance / len(x)) ** 0.5
    square = (x - mean) ** 2
    z_variance = (square.mean(0) - variance) / (square.std(0) / len(x) ** 0.5)
    for z in (z_mean, z_variance):  # of 64 pixels: beyond 4.5 with probability .0004
        assert float(z.abs().max()) < 4.5


def same_leaf(distance: float, r_min: float, r_max: float) -> float:
    """gamma(d) / (2 gamma(0) - gamma(d)) by quadrature over log r."""
    r = torch.linspace(math.log(r_min), math.log(r_max), 20_001, dtype=torch.float64).exp()
    weight = r**-2  # r^-3 dr = r^-2 dlog r
    half = (distance / (2 * r)).clamp(max=1)
    overlap = 2 * r**2 * (half.acos() - half * (1 - half**2).sqrt())
    gamma = torch.trapezoid(weight * overlap, r.log())
    whole = torch.trapezoid(weight * math.pi * r**2, r.log())
    return float(gamma / (2 * whole - gamma))


def equal(x: Tensor, down: int, right: int) -> tuple[float, float]:
    """(share of pairs of pixels at that offset with one grey, its standard error over images)."""
    rows, columns = x.shape[1] - down, x.shape[2] - right
    share = (x[:, :rows, :columns] == x[:, down:, right:]).double().mean((1, 2))
    return float(share.mean()), float(share.std()) / math.sqrt(len(share))


@pytest.mark.parametrize(("r_min", "r_max"), [(1.0, 6.0), (2.0, 32.0)])
@pytest.mark.parametrize(("down", "right"), [(0, 1), (1, 0), (3, 4), (0, 10)])
def test_pairs_of_pixels_share_a_leaf_as_often_as_the_overlap_says(
    r_min: float, r_max: float, down: int, right: int
) -> None:
    config = DeadLeavesConfig(side=14, r_min=r_min, r_max=r_max, noise=0.0, greys=(0, 255))
    share, error = equal(images(config), down, right)
    leaf = same_leaf(math.hypot(down, right), r_min, r_max)
    assert abs(share - (leaf + (1 - leaf) / 256)) < 4 * error
    assert error < 0.01


def test_leaves_twice_as_large_look_the_same_from_twice_as_far() -> None:
    near = DeadLeavesConfig(side=10, r_min=1.0, r_max=8.0, noise=0.0)
    far = near.model_copy(update={"side": 20, "r_min": 2.0, "r_max": 16.0})
    for offset in ((0, 1), (2, 2), (0, 6)):
        one, error = equal(images(near), *offset)
        two, other = equal(images(far, seed=2)[:, ::2, ::2], *offset)
        assert abs(one - two) < 4 * math.hypot(error, other)


def test_grey_noise_has_its_deviation_and_leaves_the_leaves_alone() -> None:
    noisy = DeadLeavesConfig(side=10)
    still = noisy.model_copy(update={"noise": 0.0})
    difference = images(noisy, rows=500) - images(still, rows=500)
    variance, count = noisy.noise**2 + 1 / 12, difference.numel()
    assert abs(float(difference.mean())) < 4 * math.sqrt(variance / count)
    assert abs(float(difference.square().mean()) / variance - 1) < 4 * math.sqrt(2 / count)


def test_an_image_depends_on_its_seed_and_number_alone() -> None:
    config = DeadLeavesConfig(side=8)
    rows = draw(config, 3, torch.arange(40))
    assert torch.equal(draw(config, 3, torch.tensor([31, 7])), rows[[31, 7]])
    assert not torch.equal(draw(config, 4, torch.arange(40)), rows)


def test_splits_are_disjoint_repeatable_and_their_own() -> None:
    config = DeadLeavesConfig(side=6, train=300, valid=50, test=80)
    one, longer = load(config), load(config.model_copy(update={"train": 400}))
    assert one.checksum == load(config).checksum != longer.checksum
    assert torch.equal(one.test, longer.test)
    assert torch.equal(one.train, longer.train[:300])
    rows = torch.cat([one.train, one.valid, one.test])
    assert len(torch.unique(rows, dim=0)) == len(rows)
    one.space.check(one.test.float())


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValidationError, match="r_min is below r_max"):
        DeadLeavesConfig(r_min=3.0, r_max=2.0)
    with pytest.raises(ValidationError, match=r"ascend within 20\.\.235"):
        DeadLeavesConfig(noise=5.0)
