"""The commands for tables: `noneq impute` fills their gaps, `noneq score` says what is strange."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noneq.cli import inputs
from noneq.cli.commands import connected
from noneq.cli.outputs import Target
from noneq.files import finite, write
from noneq.tables import Imputed, to_csv

FILLS = ("median", "mean", "draws")

Table = tuple[Sequence[str], Sequence[Sequence[Any]]]


def do_impute(given: argparse.Namespace) -> int:
    """Fill the gaps of a table (CSV)."""
    data = inputs.text(given.file)
    options = {
        name: value
        for name in ("model", "seed", "steps", "method")
        if (value := getattr(given, name)) is not None
    }
    with connected(given) as client:
        found = client.impute(data, given.draws, **options)
    _deliver(_filled(found, given.fill, given.quantiles or ()), given)
    for line in _told(found, given.fill):
        print(f"noneq: {line}", file=sys.stderr)
    return 0


def do_score(given: argparse.Namespace) -> int:
    """Say how typical the rows of a table (CSV) are, and because of which columns."""
    data = inputs.text(given.file)
    options = {
        name: value
        for name in ("model", "seed", "terms")
        if (value := getattr(given, name)) is not None
    }
    with connected(given) as client:
        found = client.score(data, **options)
    _deliver(found.lines(), given)
    print(f"noneq: {len(found.bound)} rows scored by {found.model}", file=sys.stderr)
    if found.uncompared is not None:
        print(f"noneq: {found.uncompared}", file=sys.stderr)
    return 0


def _filled(found: Imputed, fill: str, quantiles: Sequence[float]) -> Table:
    """Return the filled table; with `draws` one under the other, by their number."""
    names = list(found.table.names)
    if fill == "draws":
        rows = [[i, *row] for i in range(len(found)) for row in found.cells(i)]
        return ["draw", *names], rows
    rows = found.median() if fill == "median" else found.mean()
    if not quantiles:
        return names, rows
    shown = [c for j, c in enumerate(found.columns) if c.labels is None and found.open[:, j].any()]
    at = {column.name: j for j, column in enumerate(found.columns)}
    place = {row: i for i, row in enumerate(found.rows)}
    for column in shown:
        for level in quantiles:
            names.append(f"{column.name} q{level:g}")
            ends = np.quantile(found.values[:, :, at[column.name]], level, 1, method="inverted_cdf")
            for i, row in enumerate(rows):
                gap = i in place and found.open[place[i], at[column.name]]
                row.append(float(ends[place[i]]) if gap else None)
    return names, rows


def _told(found: Imputed, fill: str) -> list[str]:
    """Return what was done, and how far to trust it."""
    gaps, rows = int(found.open.sum()), len(found.table.cells)
    by = f"{len(found)} draws" if fill == "draws" else f"the {fill} of {len(found)} draws"
    method = f", method {found.method}" if found.method else ""
    done = f"{gaps} gaps in {len(found.rows)} of {rows} rows filled by {by}"
    warnings = [f"row {row}: {text}" for row, text in found.warnings.items()]
    alike = len(set(found.warnings.values())) == 1 and len(warnings) > 1
    if alike:
        warnings = [f"{len(warnings)} rows: {next(iter(found.warnings.values()))}"]
    about = f"{done} (model {found.model}, seed {found.seed}{method})"
    return [about, *filter(None, [found.calibration]), *warnings]


def _deliver(table: Table, given: argparse.Namespace) -> None:
    """Write a table to the target, or to stdout."""
    names, rows = table
    target: Target | None = given.out
    if given.json:
        objects = [dict(zip(names, finite([list(row)])[0], strict=True)) for row in rows]
        text = json.dumps(objects, allow_nan=False) + "\n"
    else:
        text = to_csv(names, rows)
    if target is None or target.stdout:
        sys.stdout.write(text)
    else:
        write(Path(target.path), text.encode())
