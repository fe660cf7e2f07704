"""A Normal given what goes linearly with it: held against dense Gaussian algebra."""

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.testing import assert_close

from diffusion.distributions import Normal
from diffusion.noise import DrawnNoise
from diffusion.observation import Conditioned

ROWS, D, M = 3, 5, 2


def parts(noise: float = 0.3) -> tuple[Normal, Tensor, Tensor, Tensor]:
    """x, A, y - A mean, and the covariance of y = A x + noise."""
    base = Normal(torch.randn(ROWS, D).double(), torch.rand(ROWS, D).double() + 0.2)
    matrix, off = torch.randn(ROWS, M, D).double(), torch.randn(ROWS, M).double()
    total = (matrix * base.var[:, None]) @ matrix.mT + noise * torch.eye(M).double()
    return base, matrix, off, total


def exact(base: Normal, matrix: Tensor, off: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x given y."""
    cross = base.var[:, :, None] * matrix.mT
    gain = cross @ torch.linalg.inv(total)
    return base.mean + (gain @ off[:, :, None])[:, :, 0], torch.diag_embed(
        base.var
    ) - gain @ cross.mT


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_draw_has_the_posteriors_mean_and_covariance(noise: float) -> None:
    """A draw is affine in its noise, so both are read off exactly."""
    base, matrix, off, total = parts(noise)
    mean, covariance = exact(base, matrix, off, total)
    found = Conditioned.on(base, matrix, off, total)

    def draw(n: Tensor) -> Tensor:
        return found.sample(DrawnNoise(n))

    middle = draw(torch.zeros(ROWS, D))
    assert_close(middle, mean)
    columns = torch.stack([draw(torch.eye(D)[k].expand(ROWS, D)) - middle for k in range(D)], 2)
    assert_close(columns @ columns.mT, covariance)
    if noise == 0:  # y itself comes back
        x = draw(torch.randn(ROWS, D))
        assert_close((matrix @ (x - base.mean)[:, :, None])[:, :, 0], off)


def test_densities_and_the_normaliser() -> None:
    """log p(x | y) - log p(x) = log p(y | x) - log p(y), and log Z = log p(y)."""
    base, matrix, off, total = parts()
    found = Conditioned.on(base, matrix, off, total)
    x = torch.randn(ROWS, D).double()
    mean, covariance = exact(base, matrix, off, total)
    prior = MultivariateNormal(base.mean, torch.diag_embed(base.var))
    wanted = MultivariateNormal(mean, covariance).log_prob(x) - prior.log_prob(x)
    assert_close(found.log_ratio(x), wanted)
    assert_close(found.log_z, MultivariateNormal(torch.zeros_like(off), total).log_prob(off))


def test_a_cut_still_is_a_distribution() -> None:
    """With rho cut, E_p[q / p] = 1: within 5 standard errors of 20,000 draws."""
    base, matrix, off, total = parts()
    one = base.rows(torch.tensor([0]))
    found = Conditioned.on(one, matrix[:1], off[:1], total[:1], most=0.3)
    assert float(found.rho.max()) == pytest.approx(0.3)
    n = 20_000
    draws = one.mean + one.var.sqrt() * torch.randn(n, D).double()
    ratio = found.rows(torch.zeros(n, dtype=torch.long)).log_ratio(draws).exp()
    assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / n**0.5


def test_rows_stand_alone_and_images_are_vectors() -> None:
    base, matrix, off, total = parts()
    whole = Conditioned.on(base, matrix, off, total)
    noise = torch.randn(ROWS, D)
    place = torch.tensor([2, 0, 2])
    assert_close(
        whole.rows(place).sample(DrawnNoise(noise[place])), whole.sample(DrawnNoise(noise))[place]
    )
    image = Normal(base.mean.reshape(ROWS, 1, 1, D), base.var.reshape(ROWS, 1, 1, D))
    found = Conditioned.on(image, matrix, off, total).sample(
        DrawnNoise(noise.reshape(ROWS, 1, 1, D))
    )
    assert_close(found.flatten(1), whole.sample(DrawnNoise(noise)))


def test_numbers_that_determine_each_other_are_refused() -> None:
    base, matrix, off, _ = parts()
    with pytest.raises(ValueError, match="singular operator"):
        Conditioned.on(base, matrix, off, torch.zeros(ROWS, M, M).double())
