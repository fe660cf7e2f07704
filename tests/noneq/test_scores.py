"""Scores of folders and tables: each its datum's own, in bounded memory, gone on with."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noneq import Client
from noneq.cli import scores
from noneq.cli.reading import Block
from noneq.models import Model
from tests.noneq.conftest import Run


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_is_scored(noneq: Run, greys: Path, url: str) -> None:
    status, out, err = noneq("loglik", str(greys), "-m", "grey", "--seed", "3")
    assert status == 1  # one of them is no datum of this model
    assert "small.png" in err
    assert "8 x 6" in err
    lines = table(out)
    assert [line["file"] for line in lines] == [str(greys / f"{i}.png") for i in range(4)]
    with Client(url) as client:  # a score is that of its datum, with the seed of its block
        values = np.asarray(Image.open(greys / "2.png"))[None, None]
        block = Block("", 0, values, np.ones_like(values))
        seed = scores.block_seed(3, block)
        found = client.loglik(values, model="grey", seed=seed)
    assert float(lines[2]["bound"]) == pytest.approx(found.bound[0], rel=1e-5)
    assert float(lines[2]["bits_per_dim"]) == pytest.approx(found.bits_per_dim[0], rel=1e-5)
    _, out, _ = noneq("loglik", str(greys / "1.png"), "-m", "grey", "--seed", "3", "--json")
    assert json.loads(out)["bound"] == pytest.approx(float(lines[1]["bound"]), rel=1e-5)


def test_an_interrupted_table_is_gone_on_with(noneq: Run, greys: Path) -> None:
    """What is there is kept, a torn line is done again; the whole is as if never interrupted."""
    (greys / "small.png").unlink()
    ask = ("loglik", str(greys), "-m", "grey", "-o")
    assert noneq(*ask, "whole.csv")[0] == 0
    whole = Path("whole.csv").read_bytes()
    lines = whole.splitlines(keepends=True)
    Path("torn.csv").write_bytes(b"".join(lines[:3]) + lines[3][:20])
    status, out, err = noneq(*ask, "torn.csv", "--json")
    assert status == 0
    told = json.loads(out)
    assert (told["scored"], told["before"], told["faults"]) == (2, 2, 0)
    assert "2 scores already" in err
    torn, found = table(Path("torn.csv").read_text()), table(whole.decode())
    assert [line["file"] for line in torn] == [line["file"] for line in found]
    assert np.allclose(*([float(x["bound"]) for x in rows] for rows in (torn, found)), rtol=1e-5)
    assert json.loads(noneq(*ask, "torn.csv", "--json")[1])["scored"] == 0
    status, _, err = noneq(*ask, "torn.csv", "--seed", "5")
    assert status == 2
    assert "with seed 0" in err
    Path("else.csv").write_text("a,b\n1,2\n")
    assert noneq(*ask, "else.csv")[0] == 2
    assert Path("else.csv").read_text() == "a,b\n1,2\n"


def test_tables_are_scored_by_rows(noneq: Run) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 2))
    np.save("rows.npy", rows)
    text = "\n".join(f"{a!r},{b!r}" for a, b in rows.tolist())
    Path("rows.csv").write_text(f"x,y\n{text}\n")
    ask = ("loglik", "-m", "gaussian-mixture", "--terms", "5")
    by_array, by_text = (noneq(*ask, name) for name in ("rows.npy", "rows.csv"))
    assert by_array[0] == by_text[0] == 0
    one, other = table(by_array[1]), table(by_text[1])
    assert [line["row"] for line in one] == [str(i) for i in range(300)]
    assert len({line["bound"] for line in one}) == 300
    assert np.allclose(*([float(x["bound"]) for x in rows] for rows in (one, other)), rtol=1e-6)
    with Path("scores.csv").open("w") as out:
        csv.writer(out, lineterminator="\n").writerows(
            [scores.COLUMNS, *(line.values() for line in one[:100])]
        )
    told = json.loads(noneq(*ask, "rows.npy", "-o", "scores.csv", "--json")[1])
    assert (told["before"], told["scored"]) == (100, 200)


def test_no_more_is_read_than_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many data there are, a bounded number of them is held."""
    read: list[int] = []
    written: list[int] = []

    def blocks(*_: object) -> Iterator[Block]:
        for i in range(100):
            read.append(i)
            assert len(read) - len(written) <= 2 * 3 + 1
            yield Block("a.npy", i, np.zeros((1, 2)), np.ones((1, 2)))

    def score(self: scores.Scoring, block: Block) -> list[scores.Score]:
        return [scores.Score("a.npy", block.start, "m", "density", self.seed, 0, 0, 0, 0, 0, 0)]

    monkeypatch.setattr(scores, "_blocks", blocks)
    monkeypatch.setattr(scores.Scoring, "score", score)
    model = Model("m", "vector", (2,), "gaussian", 10, "mlp", 1, ())
    with Client() as client:
        scoring = scores.Scoring(client, model, 0, {}, parallel=3)
        for found in scores.run(scoring, ["a.npy"], set()):
            assert not isinstance(found, scores.Fault)
            written.extend(one.row for one in found)
    assert written == list(range(100))
