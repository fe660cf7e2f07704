"""Report the entropy of each reverse step between its bounds (Sohl-Dickstein 2015, Equation 24).

models/NAME/entropy.csv   t, lower, model, standard_error, upper: bits per element, model units
models/NAME/entropy.png   the same as a plot
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from diffusion.likelihood.entropy import excess_entropy, step_bounds
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from training.data import Dataset

POINTS = 64  # measured steps, evenly spaced
ROWS = {"image": 32, "vector": 1000, "bits": 1000}  # rows of `test`, one x_t each
COLOUR, BAND, LIMIT = "#1f4b99", "#e3e8f2", "#8793a8"


@final
@dataclass(frozen=True)
class StepEntropies:
    """Columns of the report in bits per element, float64 [n] each.

    Attributes:
        t: int64 [n], within 2..T; at t = 1 real data have no lower bound.
        lower: on H_q(x_{t-1} | x_t).
        model: the entropy of the model's own kernel, averaged over `ROWS` examples.
        standard_error: of that mean.
        upper: on H_q(x_{t-1} | x_t).
    """

    t: Tensor
    lower: Tensor
    model: Tensor
    standard_error: Tensor
    upper: Tensor


@torch.inference_mode()
def measure(model: DiffusionModel, rows: Tensor, seed: int = 0) -> StepEntropies:
    """Measure the entropies of a model on held-out data.

    Args:
        model: in evaluation mode.
        rows: [N, *event], data units; the bounds use all, the model's entropy the first `ROWS`.
        seed: of the noise.

    Raises:
        ValueError: the process has only one step.
    """
    if model.T < 2:
        raise ValueError(
            "a process with T = 1 has only the last reverse step: there is nothing to report"
        )
    t = torch.linspace(2, model.T, min(POINTS, model.T - 1)).round().long()
    data = model.space.to_model(rows)
    power = float(data.double().square().mean())
    lower, upper = step_bounds(model.process, power, t.to(model.device))
    x_0 = data[: ROWS[model.space.kind]].to(model.device)
    row = torch.arange(len(x_0), device=model.device)
    excess = torch.stack(
        [
            excess_entropy(model, x_0, at, counter_noise(seed, row, at, Stream.TERM)).cpu()
            for at in (torch.full_like(row, step) for step in t.tolist())
        ]
    )
    lower, upper = lower.cpu(), upper.cpu()
    columns = lower, lower + excess.mean(1), excess.std(1) / math.sqrt(len(x_0)), upper
    return StepEntropies(t, *(column / math.log(2) for column in columns))


def write(path: Path, model: DiffusionModel, dataset: Dataset) -> list[Path]:
    """Write the report beside an artefact; return its files."""
    found = measure(model, dataset.test)
    table, picture = files(path)
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(vars(found))
        columns = [column.tolist() for column in vars(found).values()]
        for t, *values in zip(*columns, strict=True):
            writer.writerow([t, *(f"{value:.6g}" for value in values)])
    plot(found, picture)
    return [table, picture]


def files(path: Path) -> tuple[Path, Path]:
    """Return the paths of an artefact's table and plot."""
    return path.with_name("entropy.csv"), path.with_name("entropy.png")


def remove(path: Path) -> None:
    """Delete the report of a replaced artefact."""
    for file in files(path):
        file.unlink(missing_ok=True)


def plot(found: StepEntropies, path: Path) -> None:
    """Plot the entropies over t, and the model's position between the bounds."""
    # matplotlib takes a second to import, and only this function needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    t = found.t.numpy()
    figure = Figure(figsize=(7, 6.5), layout="constrained")
    whole, zoomed = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    bounds = (found.upper, "upper bound", "--"), (found.lower, "lower bound", ":")
    whole.fill_between(t, found.lower.numpy(), found.upper.numpy(), color=BAND)
    for values, label, style in bounds:
        whole.plot(t, values.numpy(), color=LIMIT, linestyle=style, label=label)
    whole.plot(t, found.model.numpy(), color=COLOUR, label="the model's kernel")
    whole.set_ylabel("entropy of a reverse step\nbits an element")
    whole.legend(frameon=False)
    if bool((found.lower > 0).all()):  # binary data span several orders of magnitude
        whole.set_yscale("log")
    width = (found.upper - found.lower).numpy()
    above = (found.model - found.lower).numpy()
    zoomed.fill_between(t, 0 * width, width, color=BAND)
    for values, _, style in bounds:
        zoomed.plot(t, (values - found.lower).numpy(), color=LIMIT, linestyle=style)
    zoomed.plot(t, above, color=COLOUR)
    error = found.standard_error.numpy()
    zoomed.fill_between(t, above - error, above + error, color=COLOUR, alpha=0.25, linewidth=0)
    zoomed.set_ylabel("above the lower bound\nbits an element")
    zoomed.set_xlabel("t")
    for axes in (whole, zoomed):
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=100, metadata={"Software": None})
