"""Draw the figures of `docs/posteriors.md` from its JSON files, for light and dark pages."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import AutoLocator

from benchmarks.known import EXACT, Row
from training.study.figures import COLOUR, INK, panels, write

Results = dict[str, list[Row]]


def draw_all(results: Results, folder: Path) -> None:
    """Draw the distances on the mixture."""
    cells = [title for title in results if title.startswith("mixture")]
    if cells:
        mixtures({title.removeprefix("mixture, "): results[title] for title in cells}, folder)


def mixtures(cells: Results, folder: Path) -> None:
    """Draw posterior-mixture.png: distance minus the floor, with a 95% interval of the mean."""
    order = sorted(cells, key=lambda title: [int(n) for n in title.split() if n.isdigit()])
    columns = 4
    figure, axes = panels(-(-len(order) // columns), columns, 3.2, 2.6)
    for axis in axes.flat[len(order) :]:
        axis.axis("off")
    for axis, title in zip(axes.flat, order, strict=False):
        rows = [row for row in cells[title] if row["method"] != EXACT]
        floor = next(row for row in cells[title] if row["method"] == EXACT)
        for place, row in enumerate(reversed(rows)):
            ours = "(" not in str(row["method"])
            axis.errorbar(
                float(row["distance"]),
                place,
                xerr=float(row["interval"]),
                fmt="o",
                markersize=4,
                color=COLOUR if ours else INK,
            )
        axis.axvline(float(floor["distance"]), color=INK, linestyle=":", linewidth=1)
        names = [str(row["method"]) for row in reversed(rows)]
        axis.set_yticks(range(len(names)), names, fontsize=6, color=INK)
        axis.xaxis.set_major_locator(AutoLocator())
        axis.tick_params(axis="x", labelsize=6, colors=INK)
        axis.set_title(title, color=INK, fontsize=8)
        axis.set_xlim(left=0)
    figure.set_layout_engine("tight")
    write(figure, folder / "posterior-mixture.png")


def histograms(counts: dict[str, torch.Tensor], scalars: Sequence[str], folder: Path) -> None:
    """Draw posterior-ranks.png: a row per case, a column per scalar, with the 95% band.

    `counts` is int64 [scalars, ranks] for each case.
    """
    figure, axes = panels(len(counts), len(scalars), 1.6, 1.4)
    for row, (name, table) in enumerate(counts.items()):
        for column, scalar in enumerate(scalars):
            _histogram(axes[row, column], table[column])
            if row == 0:
                axes[row, column].set_title(scalar, color=INK, fontsize=8)
        axes[row, 0].set_ylabel(name, color=INK, fontsize=7)
    write(figure, folder / "posterior-ranks.png")


def _histogram(axis: Axes, counts: torch.Tensor) -> None:
    draws, bins = int(counts.sum()), len(counts)
    expected = draws / bins
    half = 1.96 * (expected * (1 - 1 / bins)) ** 0.5
    axis.bar(range(bins), counts.tolist(), color=COLOUR, width=0.8)
    axis.axhspan(expected - half, expected + half, color=INK, alpha=0.25, linewidth=0)
    axis.set_xticks([])
    axis.set_yticks([])
