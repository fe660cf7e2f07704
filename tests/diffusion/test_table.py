"""Tables: the way to model units and back, cells, gaps and what does not belong."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.testing import assert_close

from diffusion.checkpoint import Metadata, Provenance, load, save
from diffusion.networks import MLPConfig
from diffusion.operators import Mask
from diffusion.process import MixedConfig
from diffusion.samplers import Ancestral, sample
from diffusion.schedule import LogSnrSchedule
from diffusion.table import Category, Number, TableSpace, fitted_number, of_columns

NAN = math.nan
WIND = Number(name="wind", knots=(0.0, 5.0, 20.0), scores=(-1.0, 0.0, 2.0), low=0.0)
HOURS = Number(name="hours", knots=(0.0, 24.0), scores=(-1.5, 1.5), step=1.0, low=0.0, high=23.0)
KIND = Category(name="kind", labels=("a", "b", "c"))
SPACE = TableSpace(columns=(KIND, WIND, HOURS))


def rows() -> Tensor:
    return torch.tensor([[2.0, 7.5, 0.0], [0.0, 0.0, 23.0], [NAN, NAN, 11.0]], dtype=torch.float64)


def test_rows_go_to_model_units_and_back() -> None:
    x = rows()
    z = SPACE.to_model(x)
    assert z.shape == (3, 5)
    assert_close(z[0], torch.tensor([1 / 3, -1.5, 0, 0, 1]))
    assert not bool(z[2, [0, 2, 3, 4]].any())  # gaps
    known = ~x.isnan()
    assert_close(SPACE.to_data(z)[known], x[known], rtol=1e-6, atol=1e-6)
    assert SPACE.spread(known)[2].tolist() == [False, True, False, False, False]


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
    below, above = (end[:, 0] for end in of_columns([HOURS]).cell(x[:, None]))
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
    coarse = Number(name="mass", knots=(0.0, 900.0), scores=(-1.0, 1.0), step=25.0)
    assert coarse.wrong(torch.tensor([3712.0, 3700.5])).tolist() == [0, 1]
    space = TableSpace(columns=(coarse,))
    cells = space.to_data(space.to_model(torch.tensor([[3712.0], [3713.0]])))
    assert cells.tolist() == [[3700], [3725]]
    assert HOURS.words == "steps of 1 from 0 to 23"
    with pytest.raises(ValidationError, match="ascend"):
        Number(name="x", knots=(0.0, 0.0), scores=(0.0, 1.0))
    with pytest.raises(ValidationError, match="twice"):
        Category(name="x", labels=("a", "a"))


def test_rows_are_read_as_people_write_them_and_written_back() -> None:
    written = [
        {"wind": "7.5", "kind": "c", "hours": 0},
        {"hours": 23, "kind": "a", "wind": 0.0},
        {"hours": "11"},
        ["", None, 11],
        ["b", NAN, 11.0],
    ]
    x = SPACE.encode(written)
    assert_close(x[:3], rows(), equal_nan=True)
    shown = SPACE.decode(x)
    assert shown == [
        ["c", 7.5, 0],
        ["a", 0.0, 23],
        [None, None, 11],
        [None, None, 11],
        ["b", None, 11],
    ]
    assert isinstance(shown[0][2], int)
    assert_close(SPACE.encode(shown), x, equal_nan=True)
    digits = Category(name="class", labels=("1", "2"))
    assert TableSpace(columns=(digits,)).encode([[2], [1.0], ["2"]]).tolist() == [[1], [0], [1]]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"kind": "d"}, "row 1, column 'kind': came 'd', expected is one of a, b, c"),
        ({"hours": 24}, "row 1, column 'hours': came 24, expected is steps of 1 from 0 to 23"),
        ({"wind": "strong"}, "row 1, column 'wind': came 'strong', expected is numbers from 0"),
        ({"Wind": 3}, "row 1 has a column 'Wind': the columns are kind, wind, hours"),
        (["a", 3], "row 1 has 2 cells, wanted are 3"),
    ],
)
def test_a_cell_that_does_not_belong_is_named(row: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SPACE.encode([{}, row])  # type: ignore[list-item]


def test_a_table_is_saved_loaded_and_sampled(tmp_path: Path) -> None:
    process = MixedConfig.of_table(SPACE, 20, LogSnrSchedule(), [(0.2, 0.3, 0.5)])
    network = MLPConfig(features=SPACE.event[0], width=8, depth=2, clock="log_snr", zero_out=False)
    written = Metadata(
        name="weather",
        process=process,
        network=network,
        prediction="x_0",
        space=SPACE,
        variance="lower",
        training=Provenance(data="none"),
    )
    path = tmp_path / "model.safetensors"
    before = written.build().eval()
    save(path, before, written)
    model, found = load(path)
    assert found == written
    short = Ancestral(steps=10)
    x = model.space.to_data(sample(model, 3, seed=1, sampler=short))
    assert_close(x, SPACE.to_data(sample(before, 3, seed=1, sampler=short)))
    SPACE.check(x)
    assert not x.isnan().any()
    known, nothing = ~rows().isnan(), torch.zeros(1)
    y, units = model.process.observe(SPACE, Mask(), rows(), known, nothing)
    assert_close(units, WIND.log_slope(rows()[:, 1]).nan_to_num())
    filled = SPACE.to_data(sample(model, 3, seed=1, sampler=short, observation=y))
    assert_close(filled[known], rows()[known], rtol=1e-6, atol=1e-6)
    assert SPACE.by_column(SPACE.spread(known).double()).tolist() == [[3, 1, 1]] * 2 + [[0, 0, 1]]


def test_columns_together_are_as_each_alone() -> None:
    """Maps of 2, 3 and 101 knots, lattices beside reals, with gaps and values beyond the ends."""
    dice = torch.Generator().manual_seed(1)
    rain = torch.randn(500, generator=dice, dtype=torch.float64).exp()
    long = fitted_number("rain", rain, knots=101, step=0.1, low=0.0)
    columns = (HOURS, WIND, long)
    x = torch.stack(
        (torch.linspace(0, 23, 60).round(), *torch.linspace(-9, 90, 120).view(2, 60)), 1
    )
    x[3, 1] = NAN
    together = of_columns(columns)
    alone = [of_columns([each]) for each in columns]
    z, mean = together.to_model(x), torch.linspace(-1, 2, 180).double().view(60, 3)
    var = torch.full_like(mean, 1e-3)
    for i, one in enumerate(alone):
        own = slice(i, i + 1)
        for act in ("to_model", "nearest", "width", "log_slope"):
            assert_close(
                getattr(together, act)(x)[:, own], getattr(one, act)(x[:, own]), equal_nan=True
            )
        assert_close(together.to_data(z)[:, own], one.to_data(z[:, own]), equal_nan=True)
        for found, expected in zip(
            together.settle(mean, var), one.settle(mean[:, own], var[:, own]), strict=True
        ):
            assert_close(found[:, own], expected)
        for found, expected in zip(together.cell(x), one.cell(x[:, own]), strict=True):
            assert_close(found[:, own], expected, equal_nan=True)
