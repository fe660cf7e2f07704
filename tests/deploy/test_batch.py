"""Data sets in blocks: each row comes out once, with its number, however often a run begins."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="Ray is an extra: pip install 'noneq[ray]'")

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deploy.ray import batch
from deploy.ray.__main__ import main, parser
from deploy.ray.blocks import Block, Pictures, plan
from deploy.ray.tasks import Engine, Impute, Repair, Score
from diffusion.checkpoint import save
from noneq.errors import FileError
from tests.deploy.local import start
from tests.service.http.conftest import save_models, table

VALUES: dict[str, Any] = {"device": "cpu", "batch_size": 8, "threads": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    save_models(found)
    save(found / "table" / "model.safetensors", *table())
    return found


@pytest.fixture(scope="module")
def penguins(models: Path) -> Iterator[Engine]:
    found = Engine(str(models), "table", VALUES)
    yield found
    found.close()


@pytest.fixture(scope="module")
def grey(models: Path) -> Iterator[Engine]:
    found = Engine(str(models), "grey", VALUES)
    yield found
    found.close()


ROWS = [
    {"mass": 3500.0 + 100 * i, "kind": ("Adelie", "Gentoo")[i % 2], "eggs": i % 3, "ringed": "no"}
    for i in range(10)
]


def test_a_csv_file_is_cut_between_records(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text('name,size\n"a\nb",1\n\nc,2\n"d ""q"" e",3\nf,4\ng,5', encoding="utf-8")
    blocks = list(plan([path], 2))
    assert [(b.number, b.first, b.count) for b in blocks] == [(0, 0, 2), (1, 2, 2), (2, 4, 1)]
    assert [b.cells() for b in blocks] == [
        'name,size\n"a\nb",1\n\nc,2\n',
        'name,size\n"d ""q"" e",3\nf,4\n',
        "name,size\ng,5",
    ]


def test_parquet_files_are_read_by_rows_across_their_groups(tmp_path: Path) -> None:
    for i, count in enumerate((7, 5)):
        numbers = pa.table({"x": [100 * i + j for j in range(count)]})
        pq.write_table(numbers, tmp_path / f"{i}.parquet", row_group_size=3)
    blocks = list(plan([tmp_path], 4))
    assert [(b.number, b.first, b.count) for b in blocks] == [
        (0, 0, 4),
        (1, 4, 3),
        (2, 7, 4),
        (3, 11, 1),
    ]
    read = [row["x"] for b in blocks for row in Block.from_json(b.to_json()).cells()]  # type: ignore[index]
    assert read == [*range(7), *range(100, 105)]


def test_what_is_no_data_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        list(plan([tmp_path / "none.csv"], 2))
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(FileError, match=r"expected \.parquet"):
        list(plan([tmp_path / "x.txt"], 2))
    with pytest.raises(FileError, match="holds no Parquet"):
        list(plan([tmp_path], 2))


def test_tables_are_imputed_and_scored_row_by_row(penguins: Engine, tmp_path: Path) -> None:
    rows = [{**row, "mass": None if i % 3 == 0 else row["mass"]} for i, row in enumerate(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "penguins.parquet")
    task = Impute(model="table", draws=3, seed=5)
    parts = [penguins.run(task, block) for block in plan([tmp_path / "penguins.parquet"], 4)]
    whole = pa.concat_tables([part.select(["row", "mass", "kind"]) for part in parts])
    assert whole["row"].to_pylist() == list(range(10))
    filled = whole["mass"].to_pylist()
    assert None not in filled
    assert [x for i, x in enumerate(filled) if i % 3] == [r["mass"] for r in rows if r["mass"]]
    assert whole["kind"].to_pylist() == [row["kind"] for row in ROWS]
    again = penguins.run(task, list(plan([tmp_path / "penguins.parquet"], 4))[1])
    assert again.equals(parts[1])
    scores = penguins.run(
        Score(model="table", terms=8), next(plan([tmp_path / "penguins.parquet"], 4))
    )
    assert scores["row"].to_pylist() == [0, 1, 2, 3]
    assert np.isfinite(scores["bound"].to_numpy()).all()


def test_pictures_are_repaired_and_scored(grey: Engine, tmp_path: Path) -> None:
    (height, width) = grey.facts.shape[1:]
    levels = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    alpha = np.full_like(levels, 255)
    alpha[0] = 0
    for i, transparent in enumerate((False, True)):
        shown = Image.fromarray(levels)
        if transparent:
            shown = Image.merge("LA", (shown, Image.fromarray(alpha)))
        shown.save(tmp_path / f"{i}.png")
    (block,) = plan([tmp_path], 8)
    assert isinstance(block, Pictures)
    repaired = grey.run(Repair(model="grey", draws=1), block)
    for i, raw in enumerate(repaired["image"].to_pylist()):
        path = tmp_path / f"out{i}.png"
        path.write_bytes(raw)
        pixels = np.asarray(Image.open(path))
        assert np.array_equal(pixels[i:], levels[i:])  # what was seen is as it was
    with pytest.raises(FileError, match=r"1\.png: transparent"):
        grey.run(Score(model="grey"), block)
    (tmp_path / "1.png").unlink()
    scores = grey.run(Score(model="grey", terms=4), next(plan([tmp_path], 1)))
    assert scores["file"].to_pylist() == [str(tmp_path / "0.png")]


def test_a_folder_is_continued_with_the_same_task_only(models: Path, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    out = tmp_path / "out"
    task = Score(model="table")
    (block,) = plan([tmp_path / "data.csv"], 2)
    out.mkdir()
    batch.part(out, block).touch()  # as if it had been done
    assert list(batch.run(task, [tmp_path / "data.csv"], out, models)) == [(1, 1)]
    with pytest.raises(FileError, match=r"another run: seed 0 \(now 1\)"):
        list(batch.run(Score(model="table", seed=1), [tmp_path / "data.csv"], out, models))
    with pytest.raises(FileError, match="no such model"):
        list(batch.run(Score(model="nobody"), [tmp_path / "data.csv"], out, models))


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.timeout(600)
def test_a_run_that_was_interrupted_goes_on(models: Path, tmp_path: Path) -> None:
    """On a real Ray, by the command."""
    lines = [f"{3500 + i},{'' if i % 2 else 'Gentoo'},2,no" for i in range(7)]
    lines.append(",Gentoo,2,no")
    (tmp_path / "penguins.csv").write_text("\n".join(["mass,kind,eggs,ringed", *lines]))
    out, task = tmp_path / "out", Impute(model="table", draws=2)
    run = batch.run(task, [tmp_path / "penguins.csv"], out, models, rows=2)
    assert next(run) == (0, 8)
    run.close()
    pq.write_table(pa.table({"row": [0, 1], "mass": [1.0, 2.0]}), out / "part-000000.parquet")
    asked = [str(tmp_path / "penguins.csv"), str(out), "--models", str(models), "--rows", "2"]
    with start(num_cpus=2):
        assert main(["impute", *asked, "--model", "table", "--draws", "2"]) == 0
    parts = [pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))]
    assert [row for part in parts for row in part["row"].to_pylist()] == list(range(8))
    masses = [mass for part in parts for mass in part["mass"].to_pylist()]
    assert masses == [1.0, 2.0, *(3500 + i for i in range(2, 7)), masses[7]]  # not redone
    assert masses[7] > 0  # drawn
    assert {part["kind"].to_pylist()[0] for part in parts[1:]} == {"Gentoo"}


def test_the_command_tells_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["impute", "x.csv", "out", "--model", "m", "--draws", "0"]) == 2
    assert "--draws: Input should be greater than or equal to 1" in capsys.readouterr().err
    given = parser().parse_args(["score", "a.csv", "b.parquet", "out", "--model", "m"])
    assert [str(path) for path in given.data] == ["a.csv", "b.parquet"]
