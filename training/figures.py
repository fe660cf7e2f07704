"""The pictures of the documentation, each made from shipped artefacts.

`swissroll.png` is Figure 1 of Sohl-Dickstein et al. 2015: the forward process q(x_t) at t = 0, T/2,
T, the reverse process p(x_t) at the same steps, and the drift E_p[x_{t-1} | x_t] - x_t.
"""

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffusion.checkpoint import load
from diffusion.distributions import Normal
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.plan import Ancestral
from diffusion.sampling import begin, step
from training import data
from training.config import FitConfig
from training.export import artefact_path

POINTS = 3000
LIMIT = 2.5
GRID = 17
COLOUR = "#1f4b99"


def trajectory(model: DiffusionModel, rows: int, seed: int, keep: set[int]) -> dict[int, Tensor]:
    """x_t of `rows` ancestral chains at each t of `keep`, model units."""
    row = torch.arange(rows)
    plan = Ancestral().plan(model)
    x = begin(model, counter_noise(seed, row, model.T + 1, Stream.CHAIN), None, rows)
    x_0 = torch.zeros_like(x)
    kept = {model.T: x} if model.T in keep else {}
    with torch.inference_mode():
        for number in range(len(plan)):
            noise = counter_noise(seed, row, int(plan.t[number]), Stream.CHAIN)
            x, x_0 = step(model, x, x_0, plan.at(number, x.device), noise)
            if int(plan.s[number]) in keep:
                kept[int(plan.s[number])] = x
    return kept


def forward(model: DiffusionModel, x_0: Tensor, t: int, seed: int) -> Tensor:
    """Draws of q(x_t | x_0); x_0 itself at t = 0."""
    if t == 0:
        return x_0
    row = torch.arange(len(x_0))
    noise = counter_noise(seed, row, t, Stream.TERM)
    return model.process.marginal(x_0, torch.full_like(row, t)).sample(noise)


def drift(model: DiffusionModel, t: int) -> tuple[Tensor, Tensor]:
    """A grid [n, 2] and E_p[x_{t-1} | x_t] - x_t on it; at t = 0 that of the last step, t = 1."""
    axis = torch.linspace(-LIMIT, LIMIT, GRID)
    grid = torch.cartesian_prod(axis, axis)
    at = torch.full((len(grid),), max(t, 1))
    with torch.inference_mode():
        kernel = model.reverse_kernel(grid, at, at - 1)
    assert isinstance(kernel, Normal)  # the figure is of a Gaussian process
    return grid, kernel.mean - grid


def swissroll(model: DiffusionModel, x_0: Tensor, path: Path, seed: int = 0) -> None:
    """Write the figure of a two-dimensional model; x_0 [N, 2] are data, model units."""
    times = (0, model.T // 2, model.T)
    labels = ("t = 0", "t = T/2", "t = T")
    reverse = trajectory(model, len(x_0), seed, set(times))
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.subplots(3, 3, sharex=True, sharey=True)
    for column, (t, label) in enumerate(zip(times, labels, strict=True)):
        axes[0, column].set_title(label)
        for row, points in enumerate((forward(model, x_0, t, seed), reverse[t])):
            axes[row, column].scatter(*points.T.numpy(), s=1.0, color=COLOUR, linewidths=0)
        where, arrow = drift(model, t)
        # Lengths run over four orders of magnitude: each panel shows them against its median.
        length = arrow.norm(dim=1, keepdim=True)
        arrow = arrow / (length + length.median())
        axes[2, column].quiver(
            *where.T.numpy(), *arrow.T.numpy(), color=COLOUR, angles="xy", scale=24
        )
    for row, name in enumerate(("forward, q(x_t)", "reverse, p(x_t)", "drift, f_mu(x_t, t) - x_t")):
        axes[row, 0].set_ylabel(name)
    for axis in axes.flat:
        axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[], yticks=[])
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def make(models: Path, folder: Path) -> list[Path]:
    """Write every picture whose model is there; returns their paths."""
    made: list[Path] = []
    roll = artefact_path(models, "swissroll")
    if roll.exists():
        model, metadata = load(roll)
        config = FitConfig.model_validate(metadata.training.config)
        x_0 = model.space.to_model(data.load(config.data).test[:POINTS])
        made.append(folder / "swissroll.png")
        swissroll(model, x_0, made[-1])
    return made
