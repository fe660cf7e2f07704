"""`noneq train` and its model's answers, with all defaults.

The rows to fit are written as a CSV file, as a user has them, and what the columns hold is inferred
from it. `learned` draws with its 40 steps. A fit is kept in `runs/tables`, by its rows.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.tables.data import Column, Rows, Table
from benchmarks.tables.peers import Fill, marginal
from diffusion.model import DiffusionModel
from diffusion.operators import Mask
from diffusion.posterior import Learned, sample_posterior
from diffusion.samplers import Ancestral
from training import user_data
from training.data import Dataset
from training.fit import checkpoint as state
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks

RUNS = Path("runs/tables")
AT_ONCE = 50  # rows whose draws go through the network together


def write(table: Table, rows: Rows, path: Path) -> None:
    """Write rows as a CSV file with a heading; a gap is an empty cell."""
    lines = [",".join(f'"{column.name}"' for column in table.columns)]
    for row in rows:
        cells = zip(table.columns, row, strict=True)
        lines.append(",".join(f'"{text}"' if (text := _cell(*each)) else "" for each in cells))
    path.write_text("\n".join(lines) + "\n")


def fitted(table: Table, rows: Rows, steps: int | None = None) -> tuple[DiffusionModel, Dataset]:
    """Fit the model of `noneq train` to rows, or go on with that; None for its default steps."""
    digest = hashlib.sha256(rows.tobytes() + repr(table.columns).encode()).hexdigest()[:12]
    name = f"{len(rows)}x{len(table.columns)}-{digest}"
    folder = RUNS / (name if steps is None else f"{name}-{steps}")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "table.csv"
    write(table, rows, path)
    written, config, dataset = user_data.prepare(path, None, folder, steps=steps)
    options = RunOptions(written.with_suffix(""), save_every=200)
    made = Fit(config, options, Ranks(0, 1, torch.device("cpu")), dataset)
    if not made.run():
        raise SystemExit("interrupted and saved; the same command goes on")
    weights = state.averaged_tensors(state.read_tensors(options.out))
    made.averaged.network.load_state_dict(weights)
    return made.averaged, dataset


def base(table: Table, rows: Rows, seed: int) -> Fill:
    """What the fit begins from: a mixture in closed form, which one step leaves as it is."""
    return noneq(table, rows, seed, steps=1)


def noneq(table: Table, rows: Rows, seed: int, steps: int | None = None) -> Fill:
    """Columns that `noneq train` leaves out are drawn from the rows that were fitted."""
    model, _ = fitted(table, rows, steps)
    names = [column.name for column in table.columns]
    places = [names.index(name) for name in model.space.names or names]
    rest = marginal(table, rows, seed)

    def fill(asked: Rows, draws: int, seed: int) -> Rows:
        x = encoded(model, table, asked)
        known = ~x.isnan()
        seen, _ = model.process.observe(
            model.space, Mask(), x.nan_to_num(), known, torch.zeros_like(x)
        )
        method = Learned()
        sampler = Ancestral(steps=method.default_steps)
        parts = []
        for first in range(0, len(x), AT_ONCE):
            some = torch.arange(first, min(first + AT_ONCE, len(x)))
            found = sample_posterior(
                model, seen.rows(some), draws, seed=seed + first, method=method, sampler=sampler
            )
            parts.append(model.space.to_data(found.samples.flatten(0, 1)).unflatten(0, (-1, draws)))
        values = _values(model, table, torch.cat(parts).double())
        whole = rest(asked, draws, seed)
        whole[:, :, places] = np.where(
            np.isnan(asked[:, None, places]), values, asked[:, None, places]
        )
        return whole

    return fill


def encoded(model: DiffusionModel, table: Table, rows: Rows) -> Tensor:
    """Rows in the model's data units, float64; what its columns cannot hold is a gap."""
    by_name = {column.name: j for j, column in enumerate(table.columns)}
    names = model.space.names or tuple(by_name)
    found = torch.full((len(rows), len(names)), torch.nan, dtype=torch.float64)
    for i, name in enumerate(names):
        column, values = table.columns[by_name[name]], rows[:, by_name[name]]
        for n, value in enumerate(values):
            if not np.isnan(value):
                found[n, i] = _read(model, i, _cell(column, value))
    return found


def _read(model: DiffusionModel, i: int, cell: str) -> float:
    columns = getattr(model.space, "columns", None)
    if columns is None or isinstance(columns[i], str):
        return float(cell)  # a vector of reals
    value = columns[i].read(cell)
    wrong = value is None or bool(columns[i].wrong(torch.tensor([value])))
    return float("nan") if wrong else float(value)


def _values(model: DiffusionModel, table: Table, x: Tensor) -> Rows:
    """Draws [N, m, columns] of the model as the table's numbers and places of labels."""
    found = x.numpy().copy()
    by_name = {column.name: column for column in table.columns}
    columns = getattr(model.space, "columns", None) or ()
    for i, theirs in enumerate(columns):
        labels = getattr(theirs, "labels", None)
        if labels is None:
            continue
        ours = by_name[theirs.name].labels
        # A number that was read as a category is its label's value.
        value = np.array([ours.index(label) if ours else float(label) for label in labels])
        found[:, :, i] = value[found[:, :, i].astype(np.int64)]
    return found


def _cell(column: Column, value: float) -> str:
    if np.isnan(value):
        return ""
    return column.labels[int(value)] if column.labels else f"{value:.12g}"
