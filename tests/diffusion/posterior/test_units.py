"""What was seen in data units, as the model has it: the same density, the same posterior."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from diffusion.distributions import Bernoulli, Normal
from diffusion.observation import in_model_units
from diffusion.operators import AveragePooling, Blur, Dense, LinearOperator, Mask
from diffusion.process import BinomialConfig
from diffusion.space import DataSpace

EVEN = DataSpace(kind="vector", shape=(4,), shift=(1.0, -2.0, 0.5, 3.0), scale=2.5)
UNEVEN = EVEN.model_copy(update={"scale": (0.5, 2.0, 1.5, 4.0)})
IMAGE = DataSpace(kind="image", shape=(2, 4, 4), shift=(100.0, 50.0), scale=(60.0, 40.0))
OPERATORS = [
    Mask(),
    AveragePooling(size=2),
    Blur(kernel=((0.2, 0.5, 0.4),)),
    Dense(rows=((1.0, -0.5, 2.0, 0.3), (0.0, 1.0, 1.0, -1.0))),
]


def matrix_of(operator: LinearOperator, space: DataSpace) -> Tensor:
    return operator.matrix(space.shape, torch.device("cpu"))


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.kind)
@pytest.mark.parametrize("space", [EVEN, UNEVEN, IMAGE], ids=["even", "uneven", "image"])
def test_the_density_of_what_was_seen_is_that_in_data_units(
    space: DataSpace, operator: LinearOperator
) -> None:
    """log N(y; A x, noise^2) in data units is log r(z) and what is gained, for any x: from the
    formula, with A as a matrix."""
    if isinstance(operator, Dense) and space is IMAGE:
        pytest.skip("its rows are of vectors")
    seen = operator.seen(space.shape)
    x = torch.randn(3, *space.shape) * 5 + 20
    matrix = matrix_of(operator, space)
    y = (x.double().flatten(1) @ matrix.T).reshape(3, *seen) + torch.randn(3, *seen)
    noise = torch.rand(3, *seen) + 0.5
    known = torch.ones(3, *seen, dtype=torch.bool)
    found, gained = in_model_units(space, operator, y.float(), known, noise)
    off = (y - (x.double().flatten(1) @ matrix.T).reshape(3, *seen)).flatten(1)
    std = noise.double().flatten(1)
    wanted = (-0.5 * (off / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(1)
    z = space.to_model(x)
    assert isinstance(found.factor, Normal)
    there = Normal(found.factor.mean.double(), found.factor.var.double())
    log_r = there.log_prob(found.operator.forward(z).double())
    assert_close(log_r + gained, wanted, rtol=1e-4, atol=1e-3)


def test_only_what_is_known_counts() -> None:
    known = torch.tensor([[True, False, True, False], [False, False, False, True]])
    y = torch.tensor([[2.0, 9.0, 1.0, 9.0], [9.0, 9.0, 9.0, 3.0]])
    found, gained = in_model_units(UNEVEN, Mask(), y, known, torch.tensor(0.0))
    assert torch.equal(found.known, known)
    assert_close(gained, -torch.tensor([0.5 * 1.5, 4.0]).double().log())
    assert isinstance(found.factor, Normal)
    assert torch.equal(found.factor.var[known], torch.zeros(3))
    assert_close(found.factor.mean[known], UNEVEN.to_model(y)[known])


def test_bits_have_one_unit_and_no_operator() -> None:
    space, process = DataSpace(kind="bits", shape=(3,)), BinomialConfig(T=4).build()
    y, known = torch.tensor([[1.0, 0, 0]]), torch.tensor([[True, True, False]])
    found, gained = process.observe(space, Mask(), y, known, torch.tensor(0.1).double())
    assert isinstance(found.factor, Bernoulli)
    assert_close(found.factor.mean, torch.tensor([[0.9, 0.1, 0.5]]))
    assert gained.tolist() == [0.0]
    with pytest.raises(ValueError, match="leave out `operator`"):
        process.observe(space, AveragePooling(size=3), y[:, :1], known[:, :1], torch.tensor(0.1))


def test_a_singular_operator_without_noise_is_refused() -> None:
    twice = Dense(rows=((1.0, 0, 0, 0), (2.0, 0, 0, 0)))
    y, known = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    for space in (EVEN, UNEVEN):
        with pytest.raises(ValueError, match="a singular operator"):
            in_model_units(space, twice, y, known, torch.tensor(0.0))
        in_model_units(space, twice, y, known, torch.tensor(0.1))
