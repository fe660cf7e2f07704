"""Tables through the client: gaps are filled, rows scored and drawn, from whatever holds rows."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from diffusion.checkpoint import save
from diffusion.families import Exact
from noneq import AsyncClient, BadRequest, FileError, Patience, requests
from noneq.sse import read_preview
from service.settings import Settings
from tests.service.http.caller import starting
from tests.service.http.conftest import calibration, gaussian_mixture, table

pandas = pytest.importorskip("pandas", reason="pandas is missing")
pytestmark = pytest.mark.anyio

NAMES = ["mass", "kind", "eggs", "ringed"]
ROWS: list[Any] = [
    {"mass": 3250.5, "kind": "Adelie", "eggs": 2, "ringed": "no"},
    {"kind": "Gentoo", "eggs": 1, "ringed": "yes"},
    {"mass": 4000, "kind": None, "eggs": math.nan, "ringed": ""},
]
TEXT = "mass,kind,eggs,ringed\n3250.5,Adelie,2,no\n,Gentoo,1,yes\n4000,NA,,?\n"
LISTS = [[3250.5, "Adelie", 2, "no"], [None, "Gentoo", 1, "yes"], [4000, None, math.nan, ""]]
OPTIONS: dict[str, Any] = {"model": "table", "seed": 7, "steps": 10}


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FastAPI]:
    folder: Path = tmp_path_factory.mktemp("tables")
    model, metadata = table()
    told = {"told": (Exact(),), "calibration": (calibration(Exact()),)}
    save(folder / "table" / "model.safetensors", model, metadata.model_copy(update=told))
    points, of_points = gaussian_mixture()
    save(folder / of_points.name / "model.safetensors", points, of_points)
    settings = Settings(
        models=folder, device="cpu", batch_size=256, slots=4096, max_request_cost=1500
    )
    async with starting(settings) as found:
        yield found


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with AsyncClient(transport=transport, patience=Patience(retries=0)) as found:
        yield found


async def test_gaps_are_filled_from_whatever_holds_rows(
    client: AsyncClient, tmp_path: Path
) -> None:
    frame = pandas.DataFrame(LISTS, columns=NAMES, index=["x", "y", "z"])
    path = tmp_path / "penguins.csv"
    path.write_text(TEXT)
    first = await client.impute(frame, draws=3, **OPTIONS)
    assert repr(first) == "Imputed(3 rows, 4 gaps, 3 draws)"
    assert (first.method, list(first.warnings)) == ("learned", [1, 2])
    assert "ask for 40" in first.warnings[1]
    assert "held-out" in (first.calibration or "")
    assert len(first.draws) == 3
    for draw in first.draws:
        assert list(draw.columns) == NAMES
        assert list(draw.index) == ["x", "y", "z"]
        assert not draw.isna().to_numpy().any()
        assert draw.loc["x"].tolist() == LISTS[0]
        assert draw.loc["y", ["kind", "eggs", "ringed"]].tolist() == ["Gentoo", 1, "yes"]
        assert draw.loc["z", "mass"] == 4000
        assert draw.loc["z", "kind"] in ("Adelie", "Chinstrap", "Gentoo")
        assert isinstance(draw.loc["z", "eggs"], int | float | np.integer)
    for rows in (ROWS, LISTS, TEXT, path, str(path), iter(ROWS)):
        again = await client.impute(rows, draws=3, **OPTIONS)
        assert np.array_equal(again.values, first.values)
    turned = await client.impute(frame[NAMES[::-1]], draws=3, **OPTIONS)
    assert list(turned.draws[0].columns) == NAMES[::-1]
    assert turned.draws[0][NAMES].equals(first.draws[0])
    text = (await client.impute(TEXT, draws=3, **OPTIONS)).cells(0)
    assert text[0] == ["3250.5", "Adelie", "2", "no"]  # as it was written


async def test_what_may_stand_in_a_gap(client: AsyncClient) -> None:
    found = await client.impute(ROWS, draws=40, **OPTIONS)
    names, lines = found.gaps((0.1, 0.9))
    assert names == ["row", "column", "mean", "std", "q0.1", "q0.9", "probabilities"]
    assert [line[:2] for line in lines] == [[1, "mass"], [2, "kind"], [2, "eggs"], [2, "ringed"]]
    draws = [found.cells(i) for i in range(40)]
    masses = [cells[1][0] for cells in draws]
    assert lines[0][2] == pytest.approx(np.mean(masses))
    assert lines[0][4] == np.quantile(masses, 0.1, method="inverted_cdf")
    kinds = [cells[2][1] for cells in draws]
    assert lines[1][6] == {
        label: pytest.approx(kinds.count(label) / 40) for label in ("Adelie", "Chinstrap", "Gentoo")
    }
    median, mean = found.median(), found.mean()
    assert median[1][0] in masses
    assert mean[1][0] == pytest.approx(np.mean(masses))
    assert median[2][1] == mean[2][1] == max(lines[1][6], key=lines[1][6].get)
    assert isinstance(median[2][2], int)


async def test_pooled_estimates_are_rubins(client: AsyncClient) -> None:
    from noneq import pool

    found = await client.impute(ROWS, draws=5, **OPTIONS)
    frames = [draw.astype({"mass": float, "eggs": float}) for draw in found.draws]
    mass = pool([x.mass.mean() for x in frames], [x.mass.var() / 3 for x in frames], 2)
    assert found.pooled["mass"][:8] == pytest.approx(tuple(mass))
    assert found.pooled["mass"].variance == pytest.approx(np.mean([x.mass.var() for x in frames]))
    shares = [(x.kind == "Gentoo").mean() for x in frames]
    gentoo = pool(shares, [p * (1 - p) / 3 for p in shares], 2)
    assert found.pooled["kind=Gentoo"][:8] == pytest.approx(tuple(gentoo))
    total = sum(one.estimate for name, one in found.pooled.items() if name.startswith("kind="))
    assert total == pytest.approx(1)


async def test_rows_are_drawn_and_a_large_table_is_asked_in_pieces(client: AsyncClient) -> None:
    """The service takes 1,500 evaluations a request: 30 rows of 5 draws are halved twice."""
    drawn = await client.generate(30, model="table", seed=7, steps=10)
    assert len(drawn) == 30
    frame = drawn.frame()
    assert list(frame.columns) == NAMES
    assert set(frame["ringed"]) == {"no", "yes"}
    frame["mass"] = None
    found = await client.impute(frame, draws=15, **OPTIONS)
    assert found.values.shape == (30, 15, 4)
    assert not np.isnan(found.values).any()
    rows = frame.drop(columns="mass").to_dict("records")
    alone = await client.impute(rows[:7], draws=15, **OPTIONS)
    assert np.array_equal(alone.values, found.values[:7])
    with pytest.raises(BadRequest):
        await client.impute(frame, draws=5000, **OPTIONS)
    some = await client.generate(40, {"kind": "Gentoo", "eggs": "<3"}, **OPTIONS)
    assert set(some.frame()["kind"]) == {"Gentoo"}
    assert some.frame()["eggs"].max() == 2
    assert len(some) == 40


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"mass": 1, "beak": 2}], "kind, eggs, ringed of table are missing, and it does not know"),
        ([[1, 2]], "row 0 has 2 cells, where table has 4 columns: mass, kind, eggs, ringed"),
        ([{"mass": None}], "row 0 has nothing to go by"),
        ("absent.csv", "absent.csv cannot be read"),
        ("mass,kind\n1\n", "row 0"),
    ],
)
async def test_rows_that_do_not_fit_say_why(
    client: AsyncClient, data: str | list[Any], words: str
) -> None:
    with pytest.raises(FileError, match=words):
        await client.impute(data, **OPTIONS)
    with pytest.raises(BadRequest, match="column 'kind'"):
        await client.impute([{"kind": "Emperor"}], **OPTIONS)
    with pytest.raises(FileError, match="these are rows"):
        await client.impute(ROWS, model="gaussian-mixture")
    with pytest.raises(FileError, match="which model"):
        await client.impute(ROWS)


async def test_other_columns_stay_beside_the_models(client: AsyncClient) -> None:
    frame = pandas.DataFrame([{"name": "Pia", **ROWS[0]}, {"name": "Ulf", **ROWS[1]}])
    found = await client.impute(frame, draws=2, **OPTIONS)
    assert found.draws[1]["name"].tolist() == ["Pia", "Ulf"]
    few = await client.impute([{"mass": 4000}], draws=2, **OPTIONS)  # the others are gaps
    assert few.draws[0].columns.tolist() == NAMES
    whole = await client.impute(ROWS[:1], draws=2, **OPTIONS)
    assert whole.cells(0) == [LISTS[0]]
    assert whole.method is None


def test_a_preview_of_a_row_is_an_object_by_name() -> None:
    row = {"mass": 4000.5, "kind": "Gentoo"}
    found = read_preview({"step": 3, "rows": ["running", "waiting"], "estimates": [row, None]})
    assert found.estimates == (row, None)


async def test_limits_are_drawn_within(client: AsyncClient) -> None:
    rows = [{"mass": "<3500", "eggs": 5}, {"mass": {"between": [4000, 5000]}, "eggs": 2}]
    found = await client.impute(rows, draws=4, **OPTIONS)
    low, high = ([draw["mass"][i] for draw in found.draws] for i in range(2))
    assert max(low) < 3500
    assert 4000 <= min(high) <= max(high) <= 5000
    assert found.open[:, 0].all()


async def test_a_response_of_rows_has_labels(client: AsyncClient) -> None:
    options = {"model": "table", "seed": 7, "steps": 10}
    samples = await client.sample(3, **options)
    assert samples.samples.dtype == np.float64
    assert samples.rows()[0] == NAMES
    assert samples.rows()[1][0][1] in ("Adelie", "Chinstrap", "Gentoo")
    seen: list[object] = []
    streamed = await client.sample(3, progress=seen.append, previews=2, **options)
    assert seen
    assert np.array_equal(streamed.samples, samples.samples)
    filled = await client.send(requests.fill(ROWS[1:2], num_samples=2, quantiles=[0.5], **OPTIONS))
    assert np.isnan(filled.mean[0, 1])  # a kind has no mean
    assert filled.frame()["kind"].tolist() == ["Gentoo", "Gentoo"]
    events = await client.send(
        requests.fill(ROWS[1:2], num_samples=2, quantiles=[0.5], progress=seen.append, **OPTIONS)
    )
    for name in ("samples", "mean", "quantiles"):
        np.testing.assert_allclose(events.body.tensors[name], filled.body.tensors[name])
    with pytest.raises(Exception, match="csv"):
        samples.save("drawn.txt")
