"""Simulation-based inference: how near learned posteriors are to exact ones, by C2ST.

    pip download --no-deps sbibm==1.1.0       (its wheel is read as a file)
    pip install sbi                           (the peers; this takes the torch that is there)
    python -m benchmarks.inference [--task slcp ...] [--simulations 10000 ...] [--only NPE ...]

Six tasks of the benchmark `sbibm` (`benchmarks.simulators`) with ten observations each; a posterior
is fitted once to simulations from the prior, and asked for 10,000 draws given each observation
(`benchmarks.estimators`), which a classifier tells from the exact ones (`benchmarks.c2st`). Each
number is written to `docs/inference.json` when it is known, and not measured again; fits are kept
in `runs/inference`. `--table` prints what is there.
"""

import argparse
import json
import statistics
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.c2st import c2st
from benchmarks.estimators import ESTIMATORS, Fitted
from benchmarks.measure import machine, table
from benchmarks.simulators import OBSERVATIONS, TASKS, Published, published

BUDGETS = (10_000, 100_000)
WHEEL = Path("sbibm-1.1.0-py2.py3-none-any.whl")

Cell = dict[str, Any]


def fit(name: str, simulations: int, method: str, runs: Path) -> Fitted:
    """Fit a task's posterior to simulations from its prior."""
    task, dice = TASKS[name], np.random.default_rng([1, simulations])
    theta = task.prior(simulations, dice)
    x = task.simulate(theta, dice)
    folder = runs / f"{name}-{simulations}-{method.split()[0]}"
    return ESTIMATORS[method](task, theta, x, folder)


def measure(fitted: Fitted, seen: Published, seed: int) -> tuple[float, Cell]:
    """Return C2ST for one observation, and what else is recorded of the fit."""
    begun = time.process_time()
    drawn = fitted.draw(seen.x, len(seen.posterior), seed)
    cell = {
        "fit_seconds": round(fitted.seconds, 1),
        "draw_seconds": round(time.process_time() - begun, 1),
        "note": fitted.note,
        "machine": machine(),
    }
    return c2st(seen.posterior, drawn), cell


def show(kept: dict[str, Cell]) -> str:
    """Format a Markdown table: mean and deviation over observations, and the two times."""
    rows = []
    for key, cell in sorted(kept.items(), key=_order):
        values = list(cell["c2st"].values())
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        rows.append(
            [
                *key.split(", "),
                f"{statistics.mean(values):.3f}{spread}",
                f"{statistics.median(values):.3f}",
                f"{min(values):.3f} to {max(values):.3f}",
                str(len(values)),
                f"{cell['fit_seconds']:.0f} s",
                f"{cell['draw_seconds']:.1f} s",
            ]
        )
    head = ["task", "simulations", "method", "C2ST", "median", "range", "observations"]
    return table([*head, "fit", "10,000 draws"], rows)


def _order(item: tuple[str, Cell]) -> tuple[int, int, int]:
    name, simulations, method = item[0].split(", ")
    return list(TASKS).index(name), int(simulations), list(ESTIMATORS).index(method)


def main() -> None:
    """Measure what is missing, observation by observation, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--task", nargs="*", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--simulations", nargs="*", type=int, default=list(BUDGETS))
    parser.add_argument("--only", nargs="*", default=list(ESTIMATORS), choices=list(ESTIMATORS))
    parser.add_argument("--observations", nargs="*", type=int, default=list(OBSERVATIONS))
    parser.add_argument("--sbibm", type=Path, default=WHEEL, help="its wheel")
    parser.add_argument("--json", type=Path, default=Path("docs/inference.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/inference"))
    parser.add_argument("--table", action="store_true", help="print what was measured, and end")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cases = product(asked.only, asked.simulations, asked.task)
    for method, simulations, name in () if asked.table else cases:
        key = f"{name}, {simulations}, {method}"
        known = _read(asked.json).get(key, {}).get("c2st", {})
        missing = [number for number in asked.observations if str(number) not in known]
        fitted = fit(name, simulations, method, asked.runs) if missing else None
        for number in missing:
            assert fitted is not None
            begun = time.perf_counter()
            found, cell = measure(fitted, published(asked.sbibm, TASKS[name], number), number)
            took = time.perf_counter() - begun
            print(f"{key}, observation {number}: {found:.3f} ({took:.0f} s)", flush=True)
            _write(asked.json, key, cell, number, found)
    print(show(_read(asked.json)))


def _write(path: Path, key: str, cell: Cell, number: int, found: float) -> None:
    """Add a number; others may have been written by another process meanwhile."""
    kept = _read(path)
    known = kept.get(key, {}).get("c2st", {}) | {str(number): round(found, 4)}
    kept[key] = cell | {"c2st": dict(sorted(known.items(), key=lambda item: int(item[0])))}
    path.write_text(json.dumps(dict(sorted(kept.items(), key=_order)), indent=1) + "\n")


def _read(path: Path) -> dict[str, Cell]:
    found: dict[str, Cell] = json.loads(path.read_text()) if path.exists() else {}
    return found


if __name__ == "__main__":
    main()
