"""Series: rows that follow each other are found, and held out by stretches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from training.data import load, series
from training.data.table import TableConfig

NAMES = ("station", "time", "warm", "windy", "wet")


def walks(rows: int = 300, stations: int = 2) -> list[list[str]]:
    """Readings of stations one after the other, which share their weather; time begins anew."""
    dice = np.random.default_rng(0)
    shared = dice.normal(size=(rows, 3)).cumsum(0)
    return [
        [
            f"s{s}",
            f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00",
            *(f"{x:.3f}" for x in shared[i] + dice.normal(size=3) / 5),
        ]
        for s in range(stations)
        for i in range(rows)
    ]


def shuffled(rows: Sequence[list[str]]) -> list[list[str]]:
    return [rows[i] for i in np.random.default_rng(1).permutation(len(rows))]


def test_readings_are_a_series_along_their_times() -> None:
    found = series.find(NAMES, walks())
    assert found is not None
    assert found.along == "time"
    # The same hour at another station is in the same group: it would give the answer away.
    assert torch.equal(found.groups[:300], found.groups[300:])
    assert len(found.groups.unique()) == series.BLOCKS
    # Without times there is only the order of the rows.
    bare = series.find(NAMES[2:], [row[2:] for row in walks(stations=1)])
    assert bare is not None
    assert bare.along == series.ROWS


def test_rows_in_any_order_are_none_nor_is_a_table_sorted_by_class() -> None:
    assert series.find(NAMES, shuffled(walks())) is None
    dice = np.random.default_rng(2)
    x = dice.normal(size=(150, 4)) + np.arange(150)[:, None] // 50 * 5
    rows = [[f"kind {i // 50}", *(f"{v:.2f}" for v in row)] for i, row in enumerate(x)]
    assert series.find(("kind", *"abcd"), rows) is None
    assert series.find(("word",), [["a"], ["b"]] * 50) is None


def test_stretches_are_held_out_and_gross_errors_not_fitted_to(tmp_path: Path) -> None:
    """Each hour is in one split, whatever the station; the answer to why is in the notes."""
    rows = walks()
    rows[100][3] = "99999"
    path = tmp_path / "walks.csv"
    path.write_text("\n".join(map(",".join, [list(NAMES), *rows])))
    dataset = load(TableConfig(file=str(path), valid=0.1))
    assert any("alike" in note and "time" in note for note in dataset.notes)
    assert dataset.groups is not None
    fitted, watched = dataset.groups.split([len(dataset.train), len(dataset.valid)])
    assert not set(fitted.tolist()) & set(watched.tolist())
    assert len(fitted.unique()) + len(watched.unique()) == series.BLOCKS - 5
    assert len(dataset.train) + len(dataset.valid) + len(dataset.test) == 600
    known = torch.cat((dataset.train, dataset.valid))
    assert int(known.isnan().sum()) == 1
    assert any("windy: 99999 so far from all others" in note for note in dataset.notes)
    windy = dataset.space.columns[2]  # type: ignore[union-attr]
    assert windy.spread[1] < 20  # type: ignore[union-attr]
