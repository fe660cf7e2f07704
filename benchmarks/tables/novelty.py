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
from benchmarks.tables import own, read, write
from benchmarks.tables.data import HELD, TABLES, Bools, Ints, Rows, Table
from benchmarks.tables.peers import Coding, fitted_normal
from diffusion.likelihood import reference
from diffusion.likelihood.bound import closed_last, combine, draw_terms, prior_part
from diffusion.model import DiffusionModel

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
    for j in whole.numbers:
        moved[:, j] = _like(whole.rows[:, j], rows[:, j], moved[:, j])
    for j in whole.categories:
        size = len(whole.columns[j].labels)
        moved[:, j] = (rows[:, j] + dice.integers(1, size, len(rows))) % size
    own = whole.wrong[which] if whole.wrong.size else np.zeros_like(wrong)
    return np.where(wrong, moved, rows), wrong | own


def _like(column: Rows, rows: Rows, moved: Rows) -> Rows:
    """Moved values on the column's lattice, if it has one, with as many decimals as it has."""
    values = np.unique(column[~np.isnan(column)])
    step = np.diff(values).min()
    steps = (values - values[0]) / step
    if np.allclose(steps, steps.round(), atol=1e-3):
        moved = rows + ((moved - rows) / step).round() * step
    places = next((p for p in range(8) if np.allclose(values.round(p), values, atol=1e-9)), 8)
    return moved.round(places)


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


def noneq(whole: Table, rows: Rows, seed: int) -> Callable[[Rows], Rows]:
    """-K of what is there; infinite for a row with a value that a column cannot hold."""
    del seed
    model, _ = own.fitted(whole, rows)
    return lambda x: _scores(model, whole, x)[0]


def typical(whole: Table, rows: Rows, seed: int) -> Callable[[Rows], Rows]:
    """-log of the typicality beside held-out rows; NaN where there are too few of them."""
    del seed
    model, dataset = own.fitted(whole, rows)
    held = reference.pick(dataset.test)
    if len(held) < reference.LEAST:
        return lambda x: np.full(len(x), np.nan)
    crowd = reference.measure(model, model.space.to_model(held), gaps=model.left_out(held))
    return lambda x: _scores(model, whole, x, crowd)[1]


def _scores(
    model: DiffusionModel, whole: Table, x: Rows, crowd: reference.Reference | None = None
) -> tuple[Rows, Rows]:
    """-K and, beside a crowd, -log typicality."""
    found = own.encoded(model, whole, x)
    names = [column.name for column in whole.columns]
    there = ~np.isnan(x[:, [names.index(name) for name in model.space.names or names]])
    refused = (there & found.isnan().numpy()).any(1)
    x_0, gaps = model.space.to_model(found), model.left_out(found)
    convention = model.space.default_convention
    steps = reference.choice(model).resolve(model, torch.arange(len(x_0)), 0, convention)
    values = draw_terms(
        model, x_0, steps, seed=0, convention=convention, observation=gaps, batch=256
    )
    prior = prior_part(model, x_0, convention, gaps).cpu()
    bound = combine(steps, values, prior, closed_last(model, x_0, convention)).bound.numpy()
    if crowd is None:
        return np.where(refused, np.inf, -bound), np.zeros(len(x))
    typicality = crowd.stand(steps, convention, values, prior, None).typicality.numpy()
    return -bound, np.where(refused, np.inf, -np.log(typicality))


PEERS: dict[str, Detect] = {
    **{name: pyod(name) for name in ("IForest", "ECOD", "KNN", "LOF")},
    "Gaussian": gaussian,
}
METHODS = PEERS | {"noneq": noneq, "typicality of noneq": typical}


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
        "auroc": None if np.isnan(score).any() else [round(each, 5) for each in found],
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
            values = [kept[key]["auroc"] for key in keys if key in kept]
            found.append([value[0] for value in values if value])
        rows.append([f"{data}, {kind}", *map(_with_error, found)])
        full = [i for i, each in enumerate(found) if len(each) == max(map(len, found))]
        best = stats.rankdata([-np.mean(found[i]) for i in full])
        ranks.append(np.full(len(methods), np.nan))
        ranks[-1][full] = best
    mean = np.nanmean(ranks, 0)
    rows.append(["mean rank", *(f"{each:.2f}" for each in mean)])
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
            print(f"{key}: {cell['auroc']} ({cell['seconds']:.0f} s)", flush=True)
    print(show(read(asked.json)))


if __name__ == "__main__":
    main()
