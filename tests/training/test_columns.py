"""The columns of a table: what is inferred, what is said of it, and a model of such a table."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.checkpoint import load as load_artefact
from diffusion.families import Exact
from diffusion.table import Category, Number, TableSpace
from training import mixture
from training.cli import main
from training.data import DataError, load
from training.data.table import TableConfig

ROWS = 240


def table(path: Path, gaps: float = 0.0) -> Path:
    """Birds, whose mass goes with their species; id, day, place and note tell nothing."""
    dice = np.random.default_rng(0)
    species = dice.choice(["Adelie", "Gentoo"], ROWS)
    columns = {
        "id": np.arange(1, ROWS + 1),
        "species": species,
        "mass": 25
        * np.round((3700 + 1300 * (species == "Gentoo") + 300 * dice.normal(size=ROWS)) / 25),
        "bill": np.round(40 + 3 * dice.normal(size=ROWS), 1),
        "ringed": dice.choice(["yes", "no"], ROWS),
        "wing": 190 + 10 * dice.normal(size=ROWS),
        "rain": np.exp(dice.normal(size=ROWS)),
        "chicks": dice.poisson(3, ROWS),
        "class": dice.integers(1, 4, ROWS),
        "day": [f"2009-11-{1 + i % 28:02d}" for i in range(ROWS)],
        "place": ["Torgersen"] * ROWS,
        "note": [f"bird {i}" for i in range(ROWS)],
    }
    lines = [",".join(columns)]
    for i in range(ROWS):
        cells = [
            str(column if isinstance(column, str) else column[i]) for column in columns.values()
        ]
        lines.append(",".join("NA" if dice.random() < gaps else cell for cell in cells))
    path.write_text("\n".join(lines))
    return path


def test_columns_are_inferred_and_said(tmp_path: Path) -> None:
    dataset = load(TableConfig(file=str(table(tmp_path / "birds.csv", gaps=0.1))))
    space = dataset.space
    assert isinstance(space, TableSpace)
    kinds = {each.name: each for each in space.columns}
    names = ["species", "mass", "bill", "ringed", "wing", "rain", "chicks", "class"]
    assert list(kinds) == names
    labels = {each.name: each.labels for each in space.columns if isinstance(each, Category)}
    assert labels["species"] == ("Adelie", "Gentoo")
    assert labels["class"] == ("1", "2", "3")
    steps = {each.name: each.step for each in space.columns if isinstance(each, Number)}
    assert steps == {"mass": 25, "bill": 0.1, "wing": None, "rain": None, "chicks": 1}
    lows = {each.name: each.low for each in space.columns if isinstance(each, Number)}
    assert lows == {"mass": None, "bill": None, "wing": None, "rain": 0, "chicks": 0}
    notes = "\n".join(dataset.notes)
    assert "id: left out, as an id" in notes
    assert "day: left out, as a date or time" in notes
    assert "place: left out, as its values are all the same" in notes
    assert "note: left out, as text" in notes
    assert "rain: real, not below 0, along its quantiles" in notes
    assert "of 240 are gaps" in notes
    rows = torch.cat((dataset.train, dataset.valid, dataset.test))
    assert len(rows) == ROWS
    assert 0.05 < float(rows.isnan().double().mean()) < 0.15
    space.check(rows)


def test_what_a_column_holds_can_be_said(tmp_path: Path) -> None:
    path = table(tmp_path / "birds.csv")
    kinds = {"chicks": "category", "class": "integer", "bill": "real", "rain": "out"}
    space = load(TableConfig(file=str(path), columns=kinds)).space  # type: ignore[arg-type]
    assert isinstance(space, TableSpace)
    found = {each.name: each for each in space.columns}
    assert isinstance(found["chicks"], Category)
    assert isinstance(found["class"], Number)
    assert found["class"].step == 1
    assert isinstance(found["bill"], Number)
    assert found["bill"].step is None
    assert "rain" not in found
    with pytest.raises(DataError, match=r"row 0, column species: .* is no number: write"):
        load(TableConfig(file=str(path), columns={"species": "real"}))
    with pytest.raises(DataError, match=r"--columns spices: .* has columns id, species"):
        load(TableConfig(file=str(path), columns={"spices": "real"}))
    with pytest.raises(DataError, match="'wing' is no integer"):
        load(TableConfig(file=str(path), columns={"wing": "integer"}))


def test_numbers_without_names_are_a_vector_and_gaps_or_names_make_a_table(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(80, 3))
    path = str(tmp_path / "full.csv")
    np.savetxt(path, x, delimiter=",")
    assert load(TableConfig(file=path)).space.kind == "vector"
    np.savetxt(path, x, delimiter=",", header="a,b,c", comments="")
    assert load(TableConfig(file=path)).space.kind == "table"
    assert load(TableConfig(file=path, reals=True)).space.kind == "vector"
    x[3, 1] = np.nan
    np.save(tmp_path / "gaps.npy", x)
    dataset = load(TableConfig(file=str(tmp_path / "gaps.npy")))
    assert dataset.space.names == ("0", "1", "2")
    assert int(torch.cat((dataset.train, dataset.valid, dataset.test)).isnan().sum()) == 1


def test_a_table_with_gaps_becomes_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mixture, "COMPONENTS", (2,))
    monkeypatch.setattr(mixture, "SHRINKAGE", (0.0,))
    table(Path("birds.csv"), gaps=0.1)
    out = "note=out,rain=out,wing=out,bill=out,mass=out"
    words = ["train", "birds.csv", "--columns", out, "--steps", "2", "--no-evaluation"]
    assert main([*words, "--device", "cpu"]) == 0
    told = capsys.readouterr().out
    assert "species: category (Adelie, Gentoo)" in told
    model, metadata = load_artefact(Path("models/birds/model.safetensors"))
    assert model.space.names == ("species", "ringed", "chicks", "class")
    assert metadata.told == (Exact(),)
    assert f"--columns {out}" in Path("models/birds/README.md").read_text()
    words = ["calibrate", "birds", "--models", "models", "--data", "12", "--steps", "5", "--json"]
    assert main([*words, "--draws", "9"]) == 0
    shown = capsys.readouterr().out
    assert "| exact: scattered | species |" in shown
    found = json.loads(shown[shown.index("[\n") :])
    assert {each["name"] for each in found[0]["columns"]} <= set(model.space.names)


@pytest.mark.parametrize("cell", ["0,5", "1,234.50", "12.5%", "€3.20"])
def test_numbers_in_another_notation_are_refused_with_what_to_write(
    tmp_path: Path, cell: str
) -> None:
    path = tmp_path / "prices.csv"
    rows = [f"{cell[:-1]}{i}{cell[-1]};{i % 9}" for i in range(100)]
    path.write_text("price;n\n" + "\n".join(rows))
    with pytest.raises(DataError, match=r"'price'.*resembles a number: write 1234\.5"):
        load(TableConfig(file=str(path)))


def test_a_table_of_categories_alone_is_one(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    rows = [f"{['yes', 'no'][i % 2]},{'abc'[i % 3]}" for i in range(120)]
    path.write_text("u,v\n" + "\n".join(rows))
    dataset = load(TableConfig(file=str(path)))
    assert isinstance(dataset.space, TableSpace)
    cells = mixture.Cells.of(dataset.space, dataset.train, [[0.5] * 2, [1 / 3] * 3])
    choice = mixture.choose(cells)
    assert choice.spread == 1.0
    assert mixture.score(cells, choice) == pytest.approx(-float(np.log(6)), abs=0.1)
    assert not any("copies" in note for note in dataset.notes)
