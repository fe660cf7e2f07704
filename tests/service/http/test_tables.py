"""A table over HTTP: rows as objects, lists and CSV; gaps are drawn, what is known comes back."""

import csv
from collections.abc import AsyncIterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import load
from torch import Tensor

from diffusion.checkpoint import save
from diffusion.families import Exact
from diffusion.likelihood import reference
from diffusion.model import DiffusionModel
from diffusion.networks import TableMixture
from diffusion.noise import counter_noise
from diffusion.samplers import Ancestral, sample
from diffusion.table import TableSpace
from service.settings import Settings
from tests.service.http.caller import ask, assert_problem, connect, starting
from tests.service.http.conftest import calibration, gaussian_mixture, table

pytestmark = pytest.mark.anyio

SIGMAS = 4.5
NAMES = ["mass", "kind", "eggs", "ringed"]
CSV = {"content-type": "text/csv", "accept": "text/csv"}
SHORT: dict[str, Any] = {"model": "table", "seed": 7, "sampler": {"steps": 20}}
ROWS: list[Any] = [
    {"mass": 3250, "kind": "Adelie"},
    [None, "Gentoo", 1, "yes"],
    {"eggs": "7", "ringed": "no", "mass": None, "kind": ""},
]


@pytest.fixture(scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FastAPI]:
    """A table that is certified for exact cells, so that `auto` answers by `learned`; points."""
    folder: Path = tmp_path_factory.mktemp("tables")
    model, metadata = table()
    told = {"told": (Exact(),), "calibration": (calibration(Exact()),)}
    save(folder / "table" / "model.safetensors", model, metadata.model_copy(update=told))
    points, of_points = gaussian_mixture()
    save(folder / of_points.name / "model.safetensors", points, of_points)
    async with starting(Settings(models=folder, device="cpu", batch_size=256, slots=4096)) as found:
        yield found


@pytest.fixture(scope="module")
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with connect(app) as found:
        yield found


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    return table()[0]


def space_of(model: DiffusionModel) -> TableSpace:
    assert isinstance(model.space, TableSpace)
    return model.space


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def conditional(model: DiffusionModel, row: dict[str, Any]) -> Tensor:
    """The network's E[x_0 | the row's cells], its log-probabilities and variances, model units."""
    space, network = space_of(model), model.network
    assert isinstance(network, TableMixture)
    x = space.encode([row])
    z = space.to_model(x)
    seen = model.process.saw(z, space.spread(~x.isnan()), torch.zeros_like(z)).to_network()
    inputs = seen.inputs
    assert inputs is not None
    first = space.to_model(torch.zeros(1, 4))  # x_T, which says nothing
    first[:, : network.config.numbers] = 0.0
    start = torch.cat((first, inputs), 1).double()
    return network(start, torch.tensor([-60.0]).double())[0]


async def test_the_model_names_and_types_its_columns(client: httpx.AsyncClient) -> None:
    found = (await client.get("/models/table")).json()
    assert found["kind"] == "table"
    assert found["shape"] == [4]
    assert found["columns"] == NAMES
    mass, kind, eggs, _ = found["table"]
    assert (mass["kind"], mass["labels"], mass["step"], mass["low"]) == ("number", None, None, 0)
    assert kind["labels"] == ["Adelie", "Chinstrap", "Gentoo"]
    assert (eggs["step"], eggs["high"]) == (1, None)
    points = (await client.get("/models/gaussian-mixture")).json()
    assert points["table"] is None


async def test_samples_are_rows_by_name_the_librarys(
    client: httpx.AsyncClient, model: DiffusionModel
) -> None:
    answer = await ask(client, "/sample", **SHORT, num_samples=5)
    space = space_of(model)
    x = space.to_data(sample(model, 5, seed=7, sampler=Ancestral(steps=20)))
    assert [list(row.values()) for row in answer["samples"]] == [
        [pytest.approx(cell) for cell in row] for row in space.decode(x)
    ]
    assert all(list(row) == NAMES for row in answer["samples"])
    assert all(isinstance(row["eggs"], int) for row in answer["samples"])
    asked = {**SHORT, "num_samples": 5}
    as_csv = await client.post("/sample", json=asked, headers={"accept": "text/csv"})
    assert as_csv.headers["content-type"].startswith("text/csv")
    assert [list(row.values()) for row in read(as_csv.text)] == [
        [str(cell) for cell in row.values()] for row in answer["samples"]
    ]
    raw = await client.post("/sample", json=asked, headers={"accept": "application/octet-stream"})
    torch.testing.assert_close(load(raw.content)["samples"], x)
    frames = await ask(client, "/sample", **SHORT, num_samples=2, frames=2)
    assert list(frames["trajectory"]["x"][0][1]) == NAMES


async def test_gaps_are_drawn_and_what_is_known_is_unchanged(client: httpx.AsyncClient) -> None:
    asked = {**SHORT, "num_samples": 3, "quantiles": [0.1, 0.9]}
    answer = await ask(client, "/inpaint", **asked, observed=ROWS)
    assert answer["method"] == "learned"
    known = [{"mass": 3250.0, "kind": "Adelie"}, {"kind": "Gentoo", "eggs": 1, "ringed": "yes"}]
    known.append({"eggs": 7, "ringed": "no"})
    for result, given in zip(answer["results"], known, strict=True):
        assert len(result["samples"]) == 3
        for row in result["samples"]:
            assert given.items() <= row.items()
            assert None not in row.values()
        assert list(result["mean"]) == list(result["std"]) == ["mass", "eggs"]
        assert len(result["quantiles"]) == 2
        assert result["quantiles"][0]["mass"] <= result["quantiles"][1]["mass"]
        for name, shares in result["probabilities"].items():
            assert sum(shares.values()) == pytest.approx(1)
            if name in given:
                assert shares[given[name]] == 1
        assert "calibrate" not in (result["diagnostics"]["warning"] or "")
    same = await ask(client, "/posterior", **asked, observed=ROWS)
    assert same["results"] == answer["results"]
    mask = [[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]  # may leave out more
    masked = await ask(client, "/inpaint", **asked, observed=ROWS, known=mask)
    assert len({row["eggs"] for row in masked["results"][1]["samples"]} | {1}) > 1


@pytest.mark.parametrize("method", ["learned", "twisted"])
async def test_completions_have_the_exact_conditional(
    client: httpx.AsyncClient, model: DiffusionModel, method: object
) -> None:
    """Mean mass, and the probabilities of a kind, of 200 draws given eggs and ring."""
    n, row = 200, {"eggs": 3, "ringed": "yes"}
    asked = {**SHORT, "sampler": {"steps": 40}, "method": method}
    answer = await ask(client, "/inpaint", **asked, observed=[row], num_samples=n)
    (found,) = answer["results"]
    exact = conditional(model, row)
    p = exact[2:5].exp()
    shares = torch.tensor(list(found["probabilities"]["kind"].values())).double()
    assert bool(((shares - p).abs() < SIGMAS * (p * (1 - p) / n).sqrt() + 0.02).all())
    mass = torch.tensor([sample["mass"] for sample in found["samples"]]).double()
    z = space_of(model).columns[0].to_model(mass)  # type: ignore[union-attr]
    std = exact[7].exp().sqrt()
    assert abs(z.mean() - exact[0]) < SIGMAS * std / n**0.5 + 0.02
    assert abs(z.std() / std - 1) < SIGMAS / n**0.5


async def test_csv_goes_in_and_comes_out(client: httpx.AsyncClient) -> None:
    """With other fields in the address; the same draws as of the same rows in JSON."""
    text = "ringed;kind;eggs\nyes;Gentoo;3\n;NA;4\n"
    path = '/inpaint?model=table&seed=7&num_samples=2&sampler={"steps": 20}'
    found = await client.post(path, content=text, headers=CSV)
    assert found.status_code == 200, found.text
    lines = read(found.text)
    assert list(lines[0]) == ["row", "draw", "weight", *NAMES]
    assert [(line["row"], line["draw"]) for line in lines] == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"),
    ]  # fmt: skip
    rows = [{"ringed": "yes", "kind": "Gentoo", "eggs": 3}, {"eggs": 4}]
    answer = await ask(client, "/inpaint", **SHORT, num_samples=2, observed=rows)
    drawn = [row for result in answer["results"] for row in result["samples"]]
    assert [[line[name] for name in NAMES] for line in lines] == [
        [str(cell) for cell in row.values()] for row in drawn
    ]
    one = await client.post("/inpaint?model=table", content=text, headers=CSV)
    completed = read(one.text)
    assert list(completed[0]) == NAMES  # one draw: the table itself, without gaps
    assert (completed[0]["kind"], completed[1]["eggs"]) == ("Gentoo", "4")
    assert all(all(line.values()) for line in completed)
    bare = await client.post(path, content=",Gentoo,3,yes\n,,4,\n", headers=CSV)
    assert read(bare.text) == lines  # a first line that holds numbers names nothing
    plain = await client.post(path, content=text, headers={"content-type": "text/csv"})
    assert plain.json()["results"] == answer["results"]
    points = await client.post(
        "/sample", json={"model": "gaussian-mixture"}, headers={"accept": "text/csv"}
    )
    assert list(read(points.text)[0]) == ["x0", "x1"]


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        ({"kind": "Emperor"}, "kind", "one of Adelie, Chinstrap, Gentoo"),
        ({"eggs": 1.5}, "eggs", "steps of 1 from 0"),
        ({"mass": "heavy"}, "mass", "numbers from 0"),
        ({"mass": [1]}, "mass", "numbers from 0"),
        ({"eggs": "nan"}, "eggs", "steps of 1 from 0"),
        ({"mass": "1e999"}, "mass", "numbers from 0"),
    ],
)
@pytest.mark.parametrize(("path", "field"), [("/inpaint", "observed"), ("/loglik", "data")])
async def test_a_cell_that_does_not_fit_is_named(
    client: httpx.AsyncClient,
    path: str,
    field: str,
    row: dict[str, Any],
    column: str,
    expected: str,
) -> None:
    asked = {"model": "table", field: [{"mass": 4000}, row]}
    document = assert_problem(await client.post(path, json=asked), 422, "invalid-request")
    assert f"Row 1, column '{column}'" in document["detail"]
    assert (document["location"], document["index"]) == (field, 1)
    assert document["column"] == column
    assert document["received"] == str(row[column])
    assert document["expected"] == expected


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"Mass": 1}], "Row 0 has a column 'Mass'."),
        ([[1, 2]], "Row 0 has 2 cells, wanted are 4."),
        ([{}], "Nothing is observed of example 0"),
        ([{"mass": 1e12}], "standard deviations away"),
        ([{"mass": 4000}, 3], "Row 1 is a number, wanted is an object or a list."),
        (["Adelie"], "Row 0 is a string"),
    ],
)
async def test_a_row_that_does_not_fit_is_named(
    client: httpx.AsyncClient, rows: list[Any], words: str
) -> None:
    response = await client.post("/inpaint", json={**SHORT, "observed": rows})
    document = assert_problem(response, 422, "invalid-request")
    assert words in document["detail"], document
    assert document["location"] in ("observed", "known")


@pytest.mark.parametrize(
    ("path", "text", "status", "words"),
    [
        ("/inpaint?model=table", "mass,mass\n1,2\n", 400, "two columns are called 'mass'"),
        ("/inpaint?model=table", "mass,kind\n1\n", 400, "row 0 (line 2) of the CSV has 1 cells"),
        ("/inpaint?model=table", "", 422, "observed: Field required"),
        ("/inpaint?model=table", "mass,beak\n1,2\n", 422, "Row 0 has a column 'beak'"),
        ("/inpaint?model=table&draws=3", "mass\n1\n", 422, "draws"),
        ("/inpaint?model=gaussian-mixture", "x0,x1\n1,\n", 422, "data are not a table"),
        ("/sample?model=table", "mass\n1\n", 422, "this request has no rows"),
    ],
)
async def test_csv_that_cannot_be_read_says_why(
    client: httpx.AsyncClient, path: str, text: str, status: int, words: str
) -> None:
    response = await client.post(path, content=text, headers=CSV)
    slug = {400: "malformed-body", 422: "invalid-request"}[status]
    assert words in assert_problem(response, status, slug)["detail"]


async def test_noise_and_operators_are_not_of_tables(client: httpx.AsyncClient) -> None:
    for more in ({"noise_std": 0.1}, {"operator": {"kind": "dense", "rows": [[1, 1, 1, 1]]}}):
        asked = {**SHORT, **more, "observed": [[4000, "Adelie", 2, "no"]]}
        document = assert_problem(
            await client.post("/posterior", json=asked), 422, "invalid-request"
        )
        assert "table" in document["detail"]


async def test_a_bound_has_a_part_for_each_column_and_leaves_gaps_out(
    client: httpx.AsyncClient, model: DiffusionModel
) -> None:
    """Below log p of what is there, by what 200 terms and 100 steps cost; parts sum to it."""
    space, network = space_of(model), model.network
    assert isinstance(network, TableMixture)
    rows = [{"mass": 3250, "kind": "Adelie", "eggs": 5, "ringed": "no"}, *ROWS]
    answer = await ask(client, "/loglik", model="table", seed=7, data=rows, terms=100)
    x = space.encode(rows)
    z, known = space.to_model(x), space.spread(~x.isnan())
    # The oracle's density at the eggs' place, times the cell's width, is about its probability.
    width = (space.to_model(x.nan_to_num() + 0.5) - space.to_model(x.nan_to_num() - 0.5))[:, 1]
    exact = network.log_prob(z, known) + space.log_jacobian_of(z, known)
    exact = exact + torch.where(known[:, 1], width.double().log(), 0.0)
    for i, result in enumerate(answer["results"]):
        parts = {part["name"]: part for part in result["columns"]}
        assert list(parts) == NAMES
        gaps = {name for name, part in parts.items() if part["given"]}
        assert gaps == {name for j, name in enumerate(NAMES) if bool(x[i, j].isnan())}
        assert all((parts[name]["nats"] is None) == (name in gaps) for name in NAMES)
        total = sum(part["nats"] for part in parts.values() if part["nats"] is not None)
        assert total == pytest.approx(result["bound"], abs=1e-3)
        assert result["elements"] == 4 - len(gaps)
        gap = float(exact[i]) - result["bound"]
        assert -4 * result["standard_error"] < gap < 0.3 + 4 * result["standard_error"]
    alone = await ask(client, "/loglik", model="table", seed=7, data=rows[:1], terms=100)
    assert alone["results"][0]["bound"] == pytest.approx(answer["results"][0]["bound"], abs=1e-3)


async def test_a_bound_given_some_columns(client: httpx.AsyncClient) -> None:
    """log p(the others | a kind) is the row's less the kind's own, and given cells have no part."""
    row = {"mass": 3250, "kind": "Adelie", "eggs": 5, "ringed": None}
    asked = {"model": "table", "seed": 7, "terms": 100}
    kinds = [{"kind": "Adelie"}]
    (whole,) = (await ask(client, "/loglik", **asked, data=[row]))["results"]
    (of_kind,) = (await ask(client, "/loglik", **asked, data=kinds))["results"]
    given = await ask(client, "/loglik", **asked, data=[row], known=[[0, 1, 0, 0]])
    (others,) = given["results"]
    error = sum(one["standard_error"] for one in (whole, of_kind, others))
    assert others["bound"] == pytest.approx(whole["bound"] - of_kind["bound"], abs=0.2 + 4 * error)
    assert others["elements"] == 2
    assert [part["given"] for part in others["columns"]] == [False, True, False, True]
    for known, words in (([[1, 1, 1, 0]], "given or a gap"), ([[1, 1, 1, 1]], "is given")):
        response = await client.post("/loglik", json={**asked, "data": [row], "known": known})
        assert words in assert_problem(response, 422, "invalid-request")["detail"]


async def test_what_a_bound_of_gaps_cannot_have(client: httpx.AsyncClient) -> None:
    asked = {"model": "table", "data": [{"mass": 4000}]}
    response = await client.post("/loglik", json={**asked, "trajectories": 4})
    assert "row 0 has gaps" in assert_problem(response, 422, "invalid-request")["detail"]
    response = await client.post("/loglik", json={"model": "table", "data": [{"mass": 1}, {}]})
    document = assert_problem(response, 422, "invalid-request")
    assert document["detail"] == "Row 1 has only gaps, so there is nothing to bound."
    whole = [[4000, "Adelie", 2, "no"]]
    answer = await ask(client, "/loglik", model="table", data=whole, trajectories=4)
    assert answer["results"][0]["columns"] is None


async def test_scores_are_csv(client: httpx.AsyncClient) -> None:
    text = "mass,kind,eggs,ringed\n3250,Adelie,2,no\n,Gentoo,,\n"
    path = "/loglik?model=table&seed=7&terms=20"
    found = await client.post(path, content=text, headers=CSV)
    lines = read(found.text)
    answer = (await client.post(path, content=text, headers={"content-type": "text/csv"})).json()
    assert [float(line["bound"]) for line in lines] == [
        pytest.approx(result["bound"]) for result in answer["results"]
    ]
    assert lines[1]["nats of mass"] == ""
    assert float(lines[1]["nats of kind"]) == pytest.approx(answer["results"][1]["bound"], abs=1e-4)


async def test_strange_rows_are_found_and_the_column_that_is_to_blame(
    tmp_path: Path, model: DiffusionModel
) -> None:
    """Against 200 held-out rows; typicality is uniform on others, within Kolmogorov's distance."""
    space, network = space_of(model), model.network
    assert isinstance(network, TableMixture)
    served, metadata = table()
    save(tmp_path / "table" / "model.safetensors", served, metadata)
    held = network.sample(counter_noise(5, torch.arange(320), 0))
    held = space.to_model(space.to_data(held))
    first = space.to_data(held[:200])
    first[:40, 2] = torch.nan  # a fifth has no eggs
    measured = reference.measure(served, space.to_model(first), gaps=served.left_out(first))
    reference.write(tmp_path / "table", served, measured)
    rows = [dict(zip(NAMES, row, strict=True)) for row in space.decode(space.to_data(held[200:]))]
    strange = {**rows[0], "mass": 9000}
    partly = {**rows[0], "ringed": None}
    for row in rows[:24]:
        row["eggs"] = None
    settings = Settings(models=tmp_path, device="cpu", batch_size=256, slots=4096)
    async with starting(settings) as app, connect(app) as client:
        answer = await ask(client, "/loglik", model="table", data=[strange, partly, *rows], seed=1)
    first, second, *others = answer["results"]
    assert first["typicality"] < 0.01
    worst = max(first["columns"], key=lambda part: part["rarer_than"])
    assert worst["name"] == "mass"
    assert worst["rarer_than"] > 0.99
    assert second["typicality"] is None
    assert second["bound"] is not None
    assert "gaps" in answer["uncompared"]
    p = torch.tensor([other["typicality"] for other in others]).sort().values
    even = (torch.arange(len(p)) + 0.5) / len(p)
    assert float((p - even).abs().max()) < 1.63 * (1 / 120 + 1 / 200) ** 0.5
    assert others[0]["columns"][2] == {
        "name": "eggs",
        "nats": None,
        "rarer_than": None,
        "given": True,
    }
    by_mass = torch.tensor([other["columns"][0]["rarer_than"] for other in others]).sort().values
    assert float((by_mass - even).abs().max()) < 1.63 * (1 / 120 + 1 / 200) ** 0.5


@pytest.mark.parametrize(
    ("limit", "low", "high"),
    [
        ("<3300", 0, 3300),
        ({"above": 4500}, 4500, 1e9),
        ({"between": [3400, 4200]}, 3400, 4200),
    ],
)
async def test_numbers_with_limits_are_drawn_within_them(
    client: httpx.AsyncClient, model: DiffusionModel, limit: object, low: float, high: float
) -> None:
    """As the oracle's draws given the other cells are, once those outside are left out."""
    space, n, row = space_of(model), 100, {"eggs": 3, "ringed": "yes"}
    asked = {**SHORT, "sampler": {"steps": 40}, "num_samples": n}
    answer = await ask(client, "/inpaint", **asked, observed=[{**row, "mass": limit}])
    (found,) = answer["results"]
    mass = torch.tensor([sample["mass"] for sample in found["samples"]]).double()
    assert bool(((mass >= low) & (mass <= high)).all())
    free = sample_rows(model, row, 4000)
    inside = free[(free >= low) & (free <= high)]
    share = len(inside) / len(free)
    error = (share * (1 - share) * (1 / 1600 + 1 / 4000)) ** 0.5
    assert found["diagnostics"]["within"] == pytest.approx(share, abs=SIGMAS * error)
    spread = float(inside.std()) * (1 / min(n, 1600 * share) + 1 / len(inside)) ** 0.5
    assert abs(float(mass.mean() - inside.mean())) < SIGMAS * spread
    assert len(space.names) == 4


def sample_rows(model: DiffusionModel, row: dict[str, Any], count: int) -> Tensor:
    """Draws of the mass given a row's cells, offline."""
    space = space_of(model)
    x = space.encode([row])
    z = space.to_model(x)
    seen = model.process.saw(z, space.spread(~x.isnan()), torch.zeros_like(z)).to_network()
    rows = seen.rows(torch.zeros(count, dtype=torch.int64))
    drawn = sample(model, count, seed=99, sampler=Ancestral(steps=40), observation=rows)
    return space.to_data(drawn)[:, 0]


async def test_limits_of_integers_and_of_csv(client: httpx.AsyncClient) -> None:
    text = "eggs,kind\n<4,Adelie\n>=6,Adelie\n3,Adelie\n"
    path = "/inpaint?model=table&seed=7&num_samples=20"
    lines = read((await client.post(path, content=text, headers=CSV)).text)
    eggs = [{int(line["eggs"]) for line in lines if line["row"] == str(i)} for i in range(3)]
    assert max(eggs[0]) == 3
    assert min(eggs[1]) == 6
    assert eggs[2] == {3}
    assert len(eggs[1]) > 1


@pytest.mark.parametrize(
    ("path", "row", "words"),
    [
        ("/inpaint", {"kind": "<3", "eggs": 1}, "Row 0, column 'kind', has a limit"),
        ("/inpaint", {"mass": "<light", "eggs": 1}, "Row 0, column 'mass', has a limit"),
        ("/inpaint", {"mass": {"between": [2, 1]}}, "Row 0, column 'mass', has a limit"),
        ("/inpaint", {"mass": {"under": 1}}, "Row 0, column 'mass', has a limit"),
        ("/inpaint", {"mass": {"above": 1e7}, "eggs": 1}, "draws of row 0 is within its limits"),
        ("/loglik", {"mass": "<3", "eggs": 1}, "Row 0 has a limit in place of a number"),
    ],
)
async def test_limits_that_cannot_be_met_say_why(
    client: httpx.AsyncClient, path: str, row: dict[str, Any], words: str
) -> None:
    field = "data" if path == "/loglik" else "observed"
    response = await client.post(path, json={"model": "table", field: [row]})
    assert words in assert_problem(response, 422, "invalid-request")["detail"]


async def test_particles_do_not_take_limits(client: httpx.AsyncClient) -> None:
    asked = {**SHORT, "observed": [{"mass": "<4000", "eggs": 2}], "method": "twisted"}
    document = assert_problem(await client.post("/inpaint", json=asked), 422, "invalid-request")
    assert document["location"] == "method"
