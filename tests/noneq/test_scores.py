"""Scores of folders and tables: each its example's own, in bounded memory, gone on with."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noneq import Client
from noneq.cli import score as scores
from noneq.models import ModelFacts
from noneq.reading import Block
from tests.noneq.conftest import Run


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_folder_is_scored(noneq: Run, greys: Path, url: str) -> None:
    status, out, err = noneq("loglik", str(greys), "-m", "grey", "--seed", "3")
    assert status == 1  # one of them is no example of this model
    assert "small.png" in err
    assert "8 x 6" in err
    lines = table(out)
    assert [line["file"] for line in lines] == [str(greys / f"{i}.png") for i in range(4)]
    with Client(url) as client:  # a score is that of its example, with the seed of its block
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
    Path("else.csv").write_text("a,b\n1,2\n")
    assert noneq(*ask, "else.csv")[0] == 2
    assert Path("else.csv").read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--seed", "5"), "with seed 0, not with seed 5"),
        (("--terms", "3"), "with settings as by default, not with settings terms=3"),
        (("--steps", "4"), "settings steps=4"),
        (("--trajectories", "2"), "settings trajectories=2"),
        (("--convention", "paper"), "with convention discretised, not with convention paper"),
    ],
    ids=lambda one: str(one[0]) if isinstance(one, tuple) else None,
)
def test_a_table_is_gone_on_with_in_the_same_way_only(
    noneq: Run, greys: Path, more: tuple[str, ...], told: str
) -> None:
    ask = ("loglik", str(greys / "0.png"), "-m", "grey", "-o", "scores.csv")
    assert noneq(*ask)[0] == 0
    before = Path("scores.csv").read_bytes()
    status, _, err = noneq(*ask, *more)
    assert status == 2
    assert told in err
    assert Path("scores.csv").read_bytes() == before
    assert noneq(*ask, "--convention", "discretised")[0] == 0  # what was meant before


def test_a_table_of_another_model_of_that_name_is_refused(noneq: Run, greys: Path) -> None:
    ask = ("loglik", str(greys / "0.png"), "-m", "grey", "-o", "scores.csv")
    assert noneq(*ask)[0] == 0
    (line,) = table(Path("scores.csv").read_text())
    checksum = line["model_checksum"]
    assert len(checksum) == 16
    Path("scores.csv").write_text(Path("scores.csv").read_text().replace(checksum, "0" * 16))
    status, _, err = noneq(*ask)
    assert status == 2
    assert f"not with model checksum {checksum}" in err


def test_a_picture_that_was_replaced_is_scored_anew(noneq: Run, greys: Path) -> None:
    """Its old score goes; the table is as if it had always been that picture."""
    (greys / "small.png").unlink()
    ask = ("loglik", str(greys), "-m", "grey", "-o")
    assert noneq(*ask, "scores.csv")[0] == 0
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(greys / "1.png")
    status, out, err = noneq(*ask, "scores.csv", "--json")
    assert status == 0
    assert (json.loads(out)["scored"], json.loads(out)["before"]) == (1, 3)
    assert "1 of another content than before" in err
    assert noneq(*ask, "whole.csv")[0] == 0
    found, wanted = (
        sorted(table(Path(name).read_text()), key=lambda line: line["file"])
        for name in ("scores.csv", "whole.csv")
    )
    for one, other in zip(found, wanted, strict=True):
        assert float(one.pop("bound")) == pytest.approx(float(other.pop("bound")), rel=1e-5)
        assert (one["file"], one["data_checksum"]) == (other["file"], other["data_checksum"])
    assert json.loads(noneq(*ask, "scores.csv", "--json")[1])["scored"] == 0


def test_an_interruption_leaves_no_score_of_what_was_replaced(noneq: Run, greys: Path) -> None:
    """The new score had been written, and the old one not yet removed."""
    ask = ("loglik", str(greys / "0.png"), "-m", "grey", "-o", "scores.csv")
    assert noneq(*ask)[0] == 0
    heading, line = Path("scores.csv").read_text().splitlines()
    checksum = line.rpartition(",")[2]
    stale = line.replace(checksum, "0" * 16)
    Path("scores.csv").write_text(f"{heading}\n{stale}\n{line}\n")
    assert noneq(*ask)[0] == 0
    assert Path("scores.csv").read_text() == f"{heading}\n{line}\n"


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

    def score(_: scores.Scoring, block: Block) -> list[scores.Score]:
        told = 0, 0, 0, 0, 0, 0, 0, "", "", ""
        return [scores.Score("a.npy", block.start, "m", "density", *told)]

    monkeypatch.setattr(scores, "_blocks", blocks)
    monkeypatch.setattr(scores.Scoring, "score", score)
    about = "m", "vector", (2,), "gaussian", 10, "mlp", 1, ()
    model = ModelFacts(*about, "density", "", {}, (), None)
    with Client() as client:
        scoring = scores.Scoring(client, model, 0, {}, parallel=3)
        for found in scores.run(scoring, [Path("a.npy")]):
            assert not isinstance(found, scores.Failure)
            written.extend(one.row for one in found)
    assert written == list(range(100))
