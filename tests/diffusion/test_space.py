"""The data space: round trips, the Jacobian, and what is refused."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from diffusion.observation import in_model_units
from diffusion.operators import Dense, Mask
from diffusion.space import DataSpace

IMAGE = DataSpace(kind="image", shape=(1, 4, 4), shift=127.5, scale=127.5, levels=256)
COLOUR = DataSpace(
    kind="image", shape=(3, 2, 2), shift=(10.0, 20.0, 30.0), scale=(0.5, 1.0, 4.0), levels=16
)
VECTOR = DataSpace(kind="vector", shape=(3,), shift=(1.0, -2.0, 0.5), scale=(3.0, 0.25, 1.0))
BITS = DataSpace(kind="bits", shape=(5,))


def test_every_level_survives_the_round_trip() -> None:
    for space in (IMAGE, COLOUR):
        assert space.levels is not None
        for level in range(space.levels):
            x = torch.full((1, *space.shape), float(level))
            assert torch.equal(space.to_data(space.to_model(x)), x)


def test_the_map_is_affine_from_the_first_axis() -> None:
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    shift, scale = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([3.0, 0.25, 1.0])
    assert_close(VECTOR.to_model(x), (x - shift) / scale)
    assert_close(VECTOR.to_data(VECTOR.to_model(x)), x)
    z = COLOUR.to_model(torch.full((1, 3, 2, 2), 10.0))
    assert_close(z[0, :, 0, 0], torch.tensor([0.0, -10.0, -5.0]))
    assert bool((z == z[:, :, :1, :1]).all())


def test_bits_are_bits_in_every_unit() -> None:
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]])
    assert torch.equal(BITS.to_model(x), x)
    assert torch.equal(BITS.to_data(x), x)


def test_levels_are_rounded_and_kept_in_range() -> None:
    z = torch.tensor([-9.0, -1.0, 0.001, 1.0, 9.0]).view(5, 1, 1, 1).expand(5, 1, 4, 4)
    assert IMAGE.to_data(z)[:, 0, 0, 0].tolist() == [0.0, 0.0, 128.0, 255.0, 255.0]


def test_bounds_are_the_ends_of_the_levels() -> None:
    assert IMAGE.bounds is not None
    assert [float(bound) for bound in IMAGE.bounds] == [-1.0, 1.0]
    assert COLOUR.bounds is not None
    low, high = COLOUR.bounds
    ends = torch.tensor([0.0, 15.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    assert_close(COLOUR.to_model(ends)[0], low.float().expand(3, 2, 2))
    assert_close(COLOUR.to_model(ends)[1], high.float().expand(3, 2, 2))
    assert VECTOR.bounds is None
    assert BITS.bounds is None


@pytest.mark.parametrize("space", [IMAGE, COLOUR, VECTOR, BITS])
def test_the_jacobian_is_that_of_to_model(space: DataSpace) -> None:
    def flat(x: Tensor) -> Tensor:
        return space.to_model(x.view(1, *space.shape)).flatten()

    x = torch.ones(space.dims, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flat, x)
    assert space.log_jacobian() == pytest.approx(
        float(jacobian.double().logdet()), rel=1e-5, abs=1e-6
    )


def test_facts() -> None:
    assert [space.dims for space in (IMAGE, COLOUR, VECTOR, BITS)] == [16, 12, 3, 5]
    conventions = [space.default_convention for space in (IMAGE, VECTOR, BITS)]
    assert conventions == ["discretised", "density", "discretised"]
    for space in (IMAGE, COLOUR, VECTOR, BITS):
        assert DataSpace.model_validate_json(space.model_dump_json()) == space


@pytest.mark.parametrize(
    ("space", "x", "says"),
    [
        (IMAGE, torch.zeros(2, 1, 4, 5), r"shape \[1, 4, 4\], came \[1, 4, 5\]"),
        (VECTOR, torch.tensor([[0.0, math.nan, 0.0]]), "NaN"),
        (VECTOR, torch.tensor([[0.0, math.inf, 0.0]]), "infinity"),
        (BITS, torch.tensor([[0.0, 1.0, 0.5, 2.0, 1.0]]), "bits are 0 or 1, came 0.5, 2$"),
        (IMAGE, torch.full((1, 1, 4, 4), 256.0), "0 to 255, came 256, 256, 256 and 13 more"),
        (IMAGE, torch.full((1, 1, 4, 4), -1.0), "came -1"),
        (IMAGE, torch.full((1, 1, 4, 4), 0.5), "scale to 0..255 and round"),
    ],
)
def test_what_is_no_example_is_refused(space: DataSpace, x: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        space.check(x)


def test_data_are_accepted() -> None:
    IMAGE.check(torch.arange(16.0).view(1, 1, 4, 4) * 17)
    VECTOR.check(torch.tensor([[1e6, -1e6, 0.0]]))
    BITS.check(torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0]]))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "image", "shape": (4, 4)}, r"\[channels, height, width\], came \[4, 4\]"),
        ({"kind": "vector", "shape": (0,)}, "at least 1"),
        ({"kind": "vector", "shape": ()}, "at least 1 item"),
        ({"kind": "vector", "shape": (3,), "scale": 0.0}, "above 0"),
        ({"kind": "vector", "shape": (3,), "scale": (1.0, 1.0, -1.0)}, "above 0"),
        ({"kind": "vector", "shape": (3,), "shift": (1.0, 2.0)}, "came 2"),
        ({"kind": "vector", "shape": (3,), "scale": math.nan}, "scale"),
        ({"kind": "vector", "shape": (3,), "scale": math.inf}, "scale"),
        ({"kind": "vector", "shape": (3,), "shift": math.nan}, "shift"),
        ({"kind": "bits", "shape": (3,), "scale": 2.0}, "every unit"),
        ({"kind": "bits", "shape": (3,), "levels": 2}, "every unit"),
        ({"kind": "image", "shape": (1, 4, 4), "levels": 1}, "levels"),
        ({"kind": "sound", "shape": (3,)}, "kind"),
        ({"kind": "vector", "shape": (3,), "unit": "mV"}, "unit"),
    ],
)
def test_what_is_no_space_is_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DataSpace.model_validate(settings)


def test_columns_are_different_names_of_every_element() -> None:
    named = VECTOR.model_copy(update={"columns": ("a", "b", "c")})
    assert DataSpace.model_validate_json(named.model_dump_json()) == named
    without = VECTOR.model_dump(exclude={"columns"})  # as older artefacts have it
    assert DataSpace.model_validate(without).columns is None
    for wrong in (("a", "b"), ("a", "b", "a")):
        with pytest.raises(ValidationError, match="different names"):
            DataSpace.model_validate(without | {"columns": wrong})
    with pytest.raises(ValidationError, match="different names"):
        DataSpace(kind="image", shape=(1, 1, 2), columns=("a", "b"))


def test_spaces_agree_where_the_names_that_both_have_do() -> None:
    named = VECTOR.model_copy(update={"columns": ("a", "b", "c")})
    turned = VECTOR.model_copy(update={"columns": ("b", "a", "c")})
    assert named.agrees(named)
    assert named.agrees(VECTOR)
    assert VECTOR.agrees(named)
    assert not named.agrees(turned)
    assert not VECTOR.agrees(VECTOR.model_copy(update={"scale": (3.0, 0.25, 2.0)}))


def limited() -> DataSpace:
    """Two elements between limits, one of them in a narrow range, and one without."""
    limits = ((-1.0, 3.0), None, (5.0, 5.5))
    return DataSpace(
        kind="vector", shape=(3,), shift=(0.1, 2.0, -0.3), scale=(1.2, 0.5, 0.8), limits=limits
    )


def test_limits_are_never_exceeded_and_the_map_is_undone() -> None:
    space = limited()
    u = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.stack([4 * u[:, 0] - 1, u[:, 1], 5 + u[:, 2] / 2], 1)
    back = space.to_data(space.to_model(x)).double()
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
    far = space.to_data(torch.tensor([[-40.0, 40.0, 40.0], [40.0, 0.0, -40.0]]))
    assert far[:, [0, 2]].tolist() == [[-1.0, 5.5], [3.0, 5.0]]
    # What is uniform becomes standard normal, before it is standardised by shift and scale.
    normal = space.unlimited(x)[:, [0, 2]]
    assert normal.mean(0).abs().max() < 4 / 1000**0.5
    assert (normal.square().mean(0) - 1).abs().max() < 4 * (2 / 1000) ** 0.5
    assert bool(space.to_model(torch.tensor([[-1.0, 0.0, 5.5]])).isfinite().all())
    space.check(x)
    with pytest.raises(ValueError, match=r"element 2 is from 5 to 5\.5, came 5\.6"):
        space.check(torch.tensor([[0.0, 0.0, 5.6]]))
    with pytest.raises(ValueError, match="a pair or null for each of its D elements"):
        DataSpace(kind="vector", shape=(2,), limits=((0, 1),))
    with pytest.raises(ValueError, match="a lesser and a greater number"):
        DataSpace(kind="vector", shape=(1,), limits=((1, 1),))


def test_the_density_of_limited_data_integrates_to_one() -> None:
    space = limited()
    x = torch.linspace(5, 5.5, 20_001, dtype=torch.float64)[1:-1]
    rows = torch.stack([torch.ones_like(x), torch.ones_like(x), x], 1)
    z = space.to_model(rows).double()
    among = torch.tensor([False, False, True]).expand_as(z)
    log_p = -0.5 * (z[:, 2].square() + math.log(2 * math.pi)) + space.log_jacobian_of(z, among)
    assert float(log_p.exp().mean()) * 0.5 == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="depends on x"):
        space.log_jacobian()


def test_an_element_with_limits_is_seen_exactly_or_not_at_all() -> None:
    space, y = limited(), torch.tensor([[0.0, 1.0, 5.2]])
    known = torch.tensor([[True, True, False]])
    noise = torch.tensor([0.0, 0.2, 0.2])
    seen, gained = in_model_units(space, Mask(), y, known, noise)
    assert torch.equal(seen.values[known], space.to_model(y)[known])
    assert float(seen.factor.var[0, 1]) == pytest.approx((0.2 / 0.5) ** 2)
    assert float(gained) == float(space.log_jacobian_of(space.to_model(y), known))
    for operator, where in ((Mask(), known.roll(1)), (Dense(rows=((1.0, 1.0, 1.0),)), known)):
        with pytest.raises(ValueError, match="seen one by one and exactly"):
            in_model_units(space, operator, y, where, noise)
