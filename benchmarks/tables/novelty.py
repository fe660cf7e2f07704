"""Find strange rows: a class that was left out, or gross errors in 1% of cells.

    python -m benchmarks.tables.novelty [--data wine ...] [--only KNN ...] [--seeds 0 1 2]

    AUROC = P(a strange row has the larger score than an ordinary one)

*class*: a class is left out of the rows to fit, another for each seed, 30% of the others are
withheld, and the left-out class is to be told from these. *errors*: in 1% of the cells of all rows,
those to fit included, a number is moved by 3 to 6 deviations either way, or a category replaced by
another; withheld rows with such a cell are to be told from those without, and where they are few
each comes several times, spoilt anew. Peers (pyod, with its defaults) get numbers in deviations,
categories one-hot, and gaps filled with the column's mean, since they take none.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from benchmarks.measure import machine, table
from benchmarks.tables import read, write
from benchmarks.tables.data import HELD, TABLES, Bools, Ints, Rows, Table
from benchmarks.tables.peers import Coding, fitted_normal

#: From a table and the rows to fit to a score of any rows, the larger the stranger.
Detect = Callable[[Table, Rows, int], Callable[[Rows], Rows]]

CLASSES = ("breast_cancer", "wine", "digits", "penguins")
ERRORS = ("weather", "breast_cancer", "wine", "diabetes", "iris", "penguins", "cars", "wage")
WRONG, MOVED = 0.01, (3.0, 6.0)  # share of cells; deviations
MOST = 4000  # rows to fit
TESTED = 1000


def left_out(whole: Table, seed: int) -> tuple[Rows, Rows, Bools]:
    """Rows to fit, rows to score, and which of these are of the class left out."""
    assert whole.classes is not None
    dice = np.random.default_rng([seed, 5])
    kinds = np.unique(whole.classes)
    strange = np.isin(whole.classes, kinds[seed % len(kinds)])
    order = dice.permutation((~strange).nonzero()[0])
    held = round(HELD * len(order))
    asked = np.concatenate([order[:held], strange.nonzero()[0]])
    return whole.rows[order[held:]], whole.rows[asked], strange[asked]


def without_class(whole: Table) -> Table:
    """The table without the column that says the class."""
    if whole.classes is None or not any(c.name == "species" for c in whole.columns):
        return whole
    kept = [j for j, column in enumerate(whole.columns) if column.name not in ("species", "island")]
    columns = tuple(whole.columns[j] for j in kept)
    return replace(whole, columns=columns, rows=whole.rows[:, kept])


def spoilt(whole: Table, seed: int) -> tuple[Rows, Rows, Bools]:
    """Rows to fit, rows to score, and which of these have a wrong cell."""
    dice = np.random.default_rng([seed, 6])
    train, _ = whole.split(seed)
    rest = dice.permutation(np.setdiff1d(np.arange(len(whole.rows)), train))[:TESTED]
    rest = np.tile(rest, -(-TESTED // len(rest)))
    rows, _ = _with_errors(whole, dice.permutation(train)[:MOST], dice)
    asked, wrong = _with_errors(whole, rest, dice)
    return rows, asked, wrong.sum(1) > 0


def _with_errors(whole: Table, which: Ints, dice: np.random.Generator) -> tuple[Rows, Bools]:
    """Rows by their numbers, spoilt, and which cells are wrong."""
    rows = whole.rows[which]
    wrong = (dice.random(rows.shape) < WRONG) & ~np.isnan(rows)
    wrong[:, list(whole.given)] = False
    sign = dice.choice([-1.0, 1.0], rows.shape)
    moved = rows + sign * dice.uniform(*MOVED, rows.shape) * whole.scale()
    for j in whole.categories:
        size = len(whole.columns[j].labels)
        moved[:, j] = (rows[:, j] + dice.integers(1, size, len(rows))) % size
    own = whole.wrong[which] if whole.wrong.size else np.zeros_like(wrong)
    return np.where(wrong, moved, rows), wrong | own


def pyod(name: str) -> Detect:
    """Make one of pyod's detectors, with its defaults."""

    def detect(whole: Table, rows: Rows, seed: int) -> Callable[[Rows], Rows]:
        from importlib import import_module

        made = getattr(import_module(f"pyod.models.{name.lower()}"), name)
        found: Any = made(random_state=seed) if name == "IForest" else made()
        coding = Coding(whole, rows)
        mean = np.nanmean(coding.code(rows), 0)

        def filled(x: Rows) -> Rows:
            coded = coding.code(x)
            return np.where(np.isnan(coded), mean, coded)

        found.fit(filled(rows))
        return lambda x: np.asarray(found.decision_function(filled(x)), np.float64)

    return detect


def gaussian(whole: Table, rows: Rows, seed: int) -> Callable[[Rows], Rows]:
    """-log p of what is there, under one Gaussian fitted by EM; its p-value, as rows have gaps."""
    del seed
    coding = Coding(whole, rows)
    normal = fitted_normal(coding.code(rows))

    def score(x: Rows) -> Rows:
        found = np.empty(len(x))
        for i, row in enumerate(coding.code(x)):
            known = ~np.isnan(row)
            part = normal.covariance[np.ix_(known, known)]
            far = row[known] - normal.mean[known]
            squares = far @ np.linalg.solve(part, far)
            # Against the chi-square of as many values as are there.
            found[i] = -stats.chi2.logsf(squares, known.sum())
        return found

    return score


PEERS: dict[str, Detect] = {
    **{name: pyod(name) for name in ("IForest", "ECOD", "KNN", "LOF")},
    "Gaussian": gaussian,
}
METHODS = PEERS


def auroc(score: Rows, strange: Bools) -> tuple[float, float]:
    """The area under the curve, ties counted half, and its standard error (Hanley and McNeil)."""
    ranks = stats.rankdata(score)
    n, m = int(strange.sum()), int((~strange).sum())
    a = (ranks[strange].sum() - n * (n + 1) / 2) / (n * m)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    variance = a * (1 - a) + (n - 1) * (q1 - a * a) + (m - 1) * (q2 - a * a)
    return float(a), float(np.sqrt(max(variance, 0.0) / (n * m)))


def cases() -> Iterator[tuple[str, str]]:
    """What is looked for, and in which table."""
    yield from product(["class"], CLASSES)
    yield from product(["errors"], ERRORS)


def measure(kind: str, data: str, seed: int, method: str) -> dict[str, Any]:
    """Fit a detector and score rows."""
    whole = without_class(TABLES[data]()) if kind == "class" else TABLES[data]()
    train, asked, strange = left_out(whole, seed) if kind == "class" else spoilt(whole, seed)
    begun = time.process_time()
    score = METHODS[method](whole, train, seed)(asked)
    took = time.process_time() - begun
    found = auroc(score, strange)
    return {
        "auroc": [round(each, 5) for each in found],
        "strange": int(strange.sum()),
        "rows": len(asked),
        "fitted": len(train),
        "seconds": round(took, 2),
        "machine": machine(),
    }


def show(kept: dict[str, dict[str, Any]]) -> str:
    """Format a Markdown table: AUROC, mean over seeds with its standard error, and mean ranks."""
    methods = [m for m in METHODS if any(key.endswith(f", {m}") for key in kept)]
    rows, ranks = [], []
    for kind, data in cases():
        found = []
        for method in methods:
            keys = [f"{kind}, {data}, {seed}, {method}" for seed in range(9)]
            found.append([kept[key]["auroc"][0] for key in keys if key in kept])
        if all(found) and len({len(each) for each in found}) == 1:
            ranks.append(stats.rankdata([-np.mean(each) for each in found]))
        rows.append([f"{data}, {kind}", *map(_with_error, found)])
    if ranks:
        mean = np.mean(ranks, 0)
        rows.append([f"mean rank over {len(ranks)}", *(f"{each:.2f}" for each in mean)])
    return table(["looked for", *methods], rows)


def _with_error(values: list[float]) -> str:
    if not values:
        return ""
    error = f" ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{error}"


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="*", default=list(TABLES), choices=list(TABLES))
    parser.add_argument("--only", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, default=Path("docs/novelty.json"))
    parser.add_argument("--table", action="store_true", help="print what was measured, and end")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wanted = () if asked.table else product(asked.only, cases(), asked.seeds)
    for method, (kind, data), seed in wanted:
        key = f"{kind}, {data}, {seed}, {method}"
        if data in asked.data and key not in read(asked.json):
            cell = measure(kind, data, seed, method)
            write(asked.json, key, cell)
            print(f"{key}: {cell['auroc'][0]:.3f} ({cell['seconds']:.0f} s)", flush=True)
    print(show(read(asked.json)))


if __name__ == "__main__":
    main()
