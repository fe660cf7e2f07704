"""Operators: adjoints are adjoint, and each is what its kind says."""

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch.testing import assert_close

from diffusion.operators import AveragePooling, Blur, Dense, LinearOperator, Mask, Operator

KERNEL = ((0.0, 0.2, 0.1), (0.3, 0.5, -0.2), (0.0, 0.1, 0.7))
CASES: list[tuple[LinearOperator, tuple[int, ...]]] = [
    (Mask(), (5,)),
    (AveragePooling(size=3), (6,)),
    (AveragePooling(size=2), (3, 4, 6)),
    (Blur(kernel=((0.2, 0.5, -0.3),)), (7,)),
    (Blur(kernel=KERNEL), (2, 4, 5)),
    (Dense(rows=((1.0, 2.0, 0.0, -1.0), (0.5, 0.0, 3.0, 1.0), (0.0, 1.0, 1.0, 1.0))), (1, 2, 2)),
]


@pytest.mark.parametrize(("operator", "event"), CASES)
def test_adjoints(operator: LinearOperator, event: tuple[int, ...]) -> None:
    """<A x, y> = <x, A^T y>, A x by the matrix, and the variances of A x."""
    x = torch.randn(4, *event, dtype=torch.float64)
    y = torch.randn(4, *operator.seen(event), dtype=torch.float64)
    seen = operator.forward(x)
    assert seen.shape == y.shape
    assert_close((seen * y).flatten(1).sum(1), (x * operator.adjoint(y, event)).flatten(1).sum(1))
    matrix = operator.matrix(event, x.device)
    assert_close(seen.flatten(1), x.flatten(1) @ matrix.mT)
    var = x.square()
    assert_close(operator.variance(var).flatten(1), var.flatten(1) @ matrix.square().mT)


def test_pooling_takes_means_and_blur_correlates() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert AveragePooling(size=2).forward(image).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    point = torch.zeros(1, 1, 3, 3)
    point[0, 0, 1, 1] = 1.0
    assert_close(Blur(kernel=KERNEL).forward(point)[0, 0], torch.tensor(KERNEL).flip(0, 1))


@pytest.mark.parametrize(("operator", "event"), CASES)
def test_a_configuration_goes_through_json(
    operator: LinearOperator, event: tuple[int, ...]
) -> None:
    adapter: TypeAdapter[Operator] = TypeAdapter(Operator)
    assert operator.seen(event)  # what it has worked out is no part of it
    operator.forward(torch.zeros(1, *event))
    assert adapter.validate_json(operator.model_dump_json()) == type(operator)(
        **operator.model_dump()
    )


def test_what_does_not_fit_teaches() -> None:
    with pytest.raises(ValueError, match=r"blocks of 3 do not tile sides of \[4\]"):
        AveragePooling(size=3).seen((4,))
    with pytest.raises(ValueError, match=r"vectors .* and images"):
        AveragePooling(size=2).seen((4, 4))
    with pytest.raises(ValueError, match="4 elements, came rows of 2"):
        Dense(rows=((1, 2),)).seen((4,))
    with pytest.raises(ValueError, match="one row of numbers"):
        Blur(kernel=KERNEL).seen((4,))
    with pytest.raises(ValidationError, match="odd sides"):
        Blur(kernel=((1, 2),))
    with pytest.raises(ValidationError, match=r"rows of one length, came \[1, 2\]"):
        Dense(rows=((1, 2), (1,)))
