"""`noneq impute` and `noneq score`: files, pipes, and what is told beside them."""

import csv
import json
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffusion.checkpoint import save
from diffusion.families import Exact
from diffusion.likelihood import reference
from diffusion.networks import TableMixture
from diffusion.noise import counter_noise
from service.settings import Settings
from tests.noneq.conftest import Run, listening
from tests.service.http.conftest import calibration, table

TEXT = "name,mass,kind,eggs,ringed\nPia,3250.50,Adelie,2,no\nUlf,,Gentoo,1,yes\nIda,4000,,,no\n"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("tables")
    model, metadata = table()
    told = {"told": (Exact(),), "calibration": (calibration(Exact()),)}
    save(folder / "table" / "model.safetensors", model, metadata.model_copy(update=told))
    assert isinstance(model.network, TableMixture)
    held = model.network.sample(counter_noise(5, torch.arange(60), 0))
    held = model.space.to_model(model.space.to_data(held))
    reference.write(folder / "table", model, reference.measure(model, held))
    with listening(Settings(models=folder, device="cpu", batch_size=256)) as found:
        yield found


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def give(text: str) -> None:
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=BytesIO(text.encode())))

    return give


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(StringIO(text)))


def test_gaps_are_filled_and_nothing_else_is_changed(noneq: Run) -> None:
    Path("in.csv").write_text(TEXT)
    status, out, err = noneq("impute", "in.csv", "-o", "out.csv", "--seed", "7", "-n", "5")
    assert (status, out) == (0, "")
    told = err.splitlines()
    assert told[0] == (
        "noneq: 3 gaps in 2 of 3 rows filled by the median of 5 draws (model table, seed 7, "
        "method learned)"
    )
    assert "held-out data" in told[1]
    lines = Path("out.csv").read_text().splitlines()
    assert lines[0] == "name,mass,kind,eggs,ringed"
    assert lines[1] == "Pia,3250.50,Adelie,2,no"  # to the letter
    assert lines[2].endswith(",Gentoo,1,yes")
    assert lines[3].startswith("Ida,4000,")
    filled = read("\n".join(lines))
    assert all(all(row.values()) for row in filled)
    assert filled[2]["kind"] in ("Adelie", "Chinstrap", "Gentoo")
    assert filled[2]["eggs"].isdecimal()


def test_draws_means_and_quantiles(noneq: Run) -> None:
    Path("in.csv").write_text(TEXT)
    ask = ("impute", "in.csv", "--seed", "7", "-n", "4")
    drawn = read(noneq(*ask, "--fill", "draws")[1])
    assert [(row["draw"], row["name"]) for row in drawn] == [
        (str(i), name) for i in range(4) for name in ("Pia", "Ulf", "Ida")
    ]
    masses = [float(row["mass"]) for row in drawn if row["name"] == "Ulf"]
    assert len(set(masses)) == 4
    _, out, _ = noneq(*ask, "--fill", "mean", "--quantiles", "0", "1")
    mean = read(out)
    assert float(mean[1]["mass"]) == pytest.approx(sum(masses) / 4)
    assert float(mean[1]["mass q0"]) == min(masses)
    assert float(mean[1]["mass q1"]) == max(masses)
    assert mean[0]["mass q0"] == mean[2]["mass q0"] == ""
    assert "kind q0" not in mean[0]
    objects = json.loads(noneq(*ask, "--json")[1])
    assert [row["mass"] for row in objects][::2] == ["3250.50", "4000"]
    assert min(masses) <= objects[1]["mass"] <= max(masses)


def test_a_pipe_of_both(noneq: Run, piped: Callable[[str], None]) -> None:
    piped(TEXT)
    status, filled, _ = noneq("impute", "-", "-o", "-", "--seed", "7")
    assert status == 0
    text = filled.replace("3250.50", "9500")
    piped("\n".join(line.partition(",")[2] for line in text.splitlines()))
    status, out, err = noneq("score", "-", "--terms", "60", "--seed", "7")
    assert status == 0
    assert err == "noneq: 3 rows scored by table\n"
    first, *others = read(out)
    assert float(first["typicality"]) < 0.05
    assert first["rarest"] == "mass"
    assert float(first["nats of mass"]) < min(float(row["nats of mass"]) for row in others)
    piped(TEXT)
    _, out, err = noneq("score", "-")
    assert "no held-out row has the same gaps" in err
    assert [row["typicality"] == "" for row in read(out)] == [False, True, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mass,kind\n4000,Gentoo\n,Gentoo\n,Emperor\n", "Row 2, column 'kind'"),
        ("mass,beak\n1,2\n", "does not know beak"),
        ("", "the CSV is empty"),
        ("mass,kind\n,\n", "row 0 has nothing to go by"),
    ],
)
def test_what_cannot_be_filled(noneq: Run, text: str, words: str) -> None:
    Path("in.csv").write_text(text)
    status, out, err = noneq("impute", "in.csv")
    assert (status, out) == (2, "")
    assert words in err


def test_files_that_are_not_there(noneq: Run) -> None:
    assert noneq("impute", "absent.csv")[0] == 2
    assert noneq("impute", "absent.csv", "-o", "out.png")[0] == 2
    Path("in.csv").write_text(TEXT)
    status, _, err = noneq("loglik", "in.csv")
    assert status == 1
    assert "`noneq score` scores them" in err
