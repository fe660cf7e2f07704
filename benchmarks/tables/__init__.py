"""Fill gaps of tables, and score the distributions that methods fill them with.

    python -m benchmarks.tables [--data wine ...] [--only "hot deck" ...] [--seeds 0 1 2]
    python -m benchmarks.tables --table

30% of the rows of each table (`data`) are withheld, and of these some cells are hidden: 30% of all
at random, the same 30% of columns in every row, or seven neighbouring hours of a day. Each method
(`peers`, `own`) is fitted to the other rows, with the gaps of their own, and draws every hidden
cell 39 times given the rest of its row. All get the same rows and cells (`scores`). Each number is
written to `docs/tables.json` when it is known, and not measured again; `--table` prints what is
there.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import machine
from benchmarks.tables.data import TABLES, Rows, Table, patterns
from benchmarks.tables.own import base, noneq
from benchmarks.tables.peers import PEERS, Fill, some
from benchmarks.tables.scores import DRAWS, score
from benchmarks.tables.show import show

Cell = dict[str, Any]
METHODS = PEERS | {"noneq": noneq, "base of noneq": base}


def key_of(data: str, pattern: str, seed: int, method: str) -> str:
    """The name of a measurement."""
    return f"{data}, {pattern}, {seed}, {method}"


def measure(
    data: str, table: Table, seed: int, method: str, wanted: list[str]
) -> Iterator[tuple[str, Cell]]:
    """Fit a method, and yield each pattern's key and scores."""
    train, test = table.split(seed)
    chosen = some(method, train, seed)
    begun = time.process_time()
    fill: Fill = METHODS[method](table, table.rows[chosen], seed)
    took = time.process_time() - begun
    for pattern in wanted:
        truth: Rows = table.rows[test]
        hidden = table.hide(pattern, test, seed)
        asked = np.where(hidden, np.nan, truth)
        asks = hidden.any(1)
        begun = time.process_time()
        drawn = fill(asked[asks], DRAWS, seed)
        found = score(table, truth[asks], hidden[asks], drawn, seed)
        yield (
            key_of(data, pattern, seed, method),
            found
            | {
                "fitted": len(chosen),
                "rows": int(asks.sum()),
                "fit_seconds": round(took, 2),
                "fill_seconds": round(time.process_time() - begun, 2),
                "machine": machine(),
            },
        )


def main() -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=Path("docs/tables.json"))
    parser.add_argument("--table", action="store_true", help="print what was measured, and end")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for method, data, seed in () if asked.table else product(asked.only, asked.data, asked.seeds):
        table = TABLES[data]()
        known = read(asked.json)
        wanted = [p for p in patterns(table) if key_of(data, p, seed, method) not in known]
        if not wanted:
            continue
        for key, cell in measure(data, table, seed, method, wanted):
            write(asked.json, key, cell)
            print(f"{key}: {cell['score'][0]:.4f} ({cell['fit_seconds']:.0f} s)", flush=True)
    print(show(read(asked.json), asked.only, asked.data))


def write(path: Path, key: str, cell: Cell) -> None:
    """Add a measurement; others may have been written by another process meanwhile."""
    kept = read(path) | {key: cell}
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(kept.items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def read(path: Path) -> dict[str, Cell]:
    """What was measured."""
    found: dict[str, Cell] = json.loads(path.read_text()) if path.exists() else {}
    return found
