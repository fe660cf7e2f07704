"""Markdown tables of what was measured."""

from typing import Any

import numpy as np

from benchmarks.measure import table

Cell = dict[str, Any]
#: What is averaged, and how it is headed.
SCORES = {
    "score": "Score of all hidden cells (CRPS of numbers, half of Brier's score of categories)",
    "crps": "CRPS of numbers",
    "rmse": "RMSE of the mean of the draws",
    "coverage": "Share of numbers within 90% intervals",
    "width": "Width of 90% intervals",
    "brier": "Brier's score of categories",
    "log": "Log score of categories, nats",
}


def show(kept: dict[str, Cell], methods: list[str], data: list[str]) -> str:
    """Format a table for each score, and one of seconds."""
    parts = []
    for name, title in SCORES.items():
        rows = [
            [label, *_row(found, name)]
            for label, found in _cases(kept, methods, data)
            if any(name in cell for cells in found for cell in cells)
        ]
        parts.append(f"**{title}**\n\n{table(['data', *methods], rows)}")
    rows = [[label, *map(_seconds, found)] for label, found in _cases(kept, methods, data)]
    parts.append(f"**Seconds to fit and to draw**\n\n{table(['data', *methods], rows)}")
    return "\n\n".join(parts)


def _cases(
    kept: dict[str, Cell], methods: list[str], data: list[str]
) -> list[tuple[str, list[list[Cell]]]]:
    """Each table and pattern, and of every method the measurements of its seeds."""
    keys = [key.split(", ") for key in kept]
    found = []
    for name in data:
        for pattern in dict.fromkeys(p for d, p, *_ in keys if d == name):
            seeds = sorted({s for d, p, s, _ in keys if (d, p) == (name, pattern)})
            each = [
                [kept[k] for s in seeds if (k := f"{name}, {pattern}, {s}, {method}") in kept]
                for method in methods
            ]
            found.append((f"{name}, {pattern}", each))
    return found


def _row(found: list[list[Cell]], name: str) -> list[str]:
    """Mean and standard error; bold where the best is not better by more than one.

    Rows and cells of a seed are the same for all, so the difference from the best is averaged over
    the seeds, and its standard error is that over seeds.
    """
    values = [np.array([cell[name] for cell in cells if name in cell]) for cells in found]
    full = max(map(len, values))
    means = [v[:, 0].mean() if len(v) == full else np.nan for v in values]
    best = int(np.nanargmin(means)) if name in ("score", "crps", "rmse", "brier", "log") else None
    out = []
    for v in values:
        if len(v) < full:  # means over other splits cannot be compared
            out.append(f"{len(v)} of {full}" if len(v) else "")
            continue
        error = np.sqrt((v[:, 1] ** 2).sum()) / len(v)
        text = f"{v[:, 0].mean():.3f} ± {error:.3f}"
        if best is not None:
            apart = v[:, 0] - values[best][:, 0]
            near = apart.std(ddof=1) / len(v) ** 0.5 if len(v) > 1 else 0.0
            text = f"**{text}**" if apart.mean() <= near else text
        out.append(text)
    return out


def _seconds(cells: list[Cell]) -> str:
    if not cells:
        return ""
    fit, fill = (np.mean([cell[f"{part}_seconds"] for cell in cells]) for part in ("fit", "fill"))
    return f"{fit:.1f}, {fill:.1f}"
