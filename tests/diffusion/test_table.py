"""Tables: the way to model units and back, cells, gaps and what does not belong."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from diffusion.table import Category, Layout, Number, fitted_number

NAN = math.nan
WIND = Number(name="wind", knots=(0.0, 5.0, 20.0), scores=(-1.0, 0.0, 2.0), low=0.0)
HOURS = Number(name="hours", knots=(0.0, 24.0), scores=(-1.5, 1.5), step=1.0, low=0.0, high=23.0)
KIND = Category(name="kind", labels=("a", "b", "c"))
LAYOUT = Layout((KIND, WIND, HOURS))


def rows() -> Tensor:
    return torch.tensor([[2.0, 7.5, 0.0], [0.0, 0.0, 23.0], [NAN, NAN, 11.0]], dtype=torch.float64)


def test_rows_go_to_model_units_and_back() -> None:
    x = rows()
    z = LAYOUT.to_model(x)
    assert z.shape == (3, 5)
    assert_close(z[0], torch.tensor([1 / 3, -1.5, 0, 0, 1]))
    assert not bool(z[2, [0, 2, 3, 4]].any())  # gaps
    known = ~x.isnan()
    assert_close(LAYOUT.to_data(z)[known], x[known], rtol=1e-6, atol=1e-6)
    assert LAYOUT.spread(known)[2].tolist() == [False, True, False, False, False]


def test_numbers_stay_on_their_lattice_and_within_limits() -> None:
    z = torch.tensor([-9.0, -0.07, 0.4, 9.0])
    assert HOURS.to_data(z).tolist() == [0, 11, 15, 23]
    assert WIND.to_data(torch.tensor([-5.0, 3.0])).tolist() == [0, 27.5]


def test_slopes_are_derivatives() -> None:
    x = torch.linspace(-3, 30, 200, dtype=torch.float64).requires_grad_()
    z = WIND.to_model(x)
    (slope,) = torch.autograd.grad(z.sum(), x)
    assert_close(WIND.log_slope(x.detach()).exp(), slope)


def test_cells_cover_the_line_once() -> None:
    x = torch.arange(24.0)
    below, above = HOURS.cell(x)
    assert below[0] == -torch.inf
    assert above[-1] == torch.inf
    assert_close(below[1:], above[:-1])


@pytest.mark.parametrize("shape", ["normal", "skewed", "few values"])
def test_quantiles_make_any_column_normal(shape: str) -> None:
    generator = torch.Generator().manual_seed(0)
    n = torch.randn(5000, generator=generator, dtype=torch.float64)
    x = {"normal": 1e6 + 3 * n, "skewed": (2 * n).exp(), "few values": n.round()}[shape]
    column = fitted_number("x", x, knots=101)
    z = column.to_model(x)
    assert abs(float(z.mean())) < 0.05
    assert abs(float(z.std()) - 1) < 0.1
    assert_close(column.to_data(z), x, rtol=1e-9, atol=1e-9)
    if shape != "few values":
        share = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        assert_close(torch.quantile(z, share), torch.special.ndtri(share), rtol=0, atol=0.02)


def test_a_constant_column_is_no_fault() -> None:
    column = fitted_number("x", torch.full((10,), 3.0), knots=50)
    assert column.to_model(torch.tensor([3.0])).tolist() == [0]


def test_what_does_not_belong() -> None:
    assert HOURS.wrong(torch.tensor([0.0, 23, 24, -1, 2.5, NAN])).tolist() == [0, 0, 1, 1, 1, 1]
    assert KIND.wrong(torch.tensor([0.0, 2, 3, 0.5, NAN])).tolist() == [0, 0, 1, 1, 1]
    assert HOURS.words == "steps of 1 from 0 to 23"
    with pytest.raises(ValidationError, match="ascend"):
        Number(name="x", knots=(0.0, 0.0), scores=(0.0, 1.0))
    with pytest.raises(ValidationError, match="twice"):
        Category(name="x", labels=("a", "a"))
