"""Draw the documentation's figures from shipped artefacts.

`figure1` and `figure2` follow Sohl-Dickstein et al. 2015: a Swiss roll forwards, backwards, and the
drift E_p[x_{t-1} | x_t] - x_t; and the heartbeat, from noise to data. They have a transparent
background and only middle tones, for light and dark pages.
"""

import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.samplers import Ancestral, begin, step
from training import data
from training.config import FitConfig, artefact_path
from training.study import galleries

POINTS = 3000
LIMIT = 2.5
GRID = 17
SMALL = ("swissroll", "swissroll-paper", "heartbeat-paper")
DRAWN = (*SMALL, *(picture.model for picture in galleries.PICTURES))
COLOUR = "#3b82d6"
INK = "#7d8590"


def trajectory(model: DiffusionModel, rows: int, seed: int, keep: set[int]) -> dict[int, Tensor]:
    """Sample `rows` ancestral chains and return x_t at each t in `keep`, in model units."""
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
    """Sample q(x_t | x_0); x_0 itself at t = 0."""
    if t == 0:
        return x_0
    row = torch.arange(len(x_0))
    noise = counter_noise(seed, row, t, Stream.TERM)
    return model.process.marginal(x_0, torch.full_like(row, t)).sample(noise)


def drift(model: DiffusionModel, t: int) -> tuple[Tensor, Tensor]:
    """Return a grid [n, 2] and E_p[x_{t-1} | x_t] - x_t on it; t = 0 is treated as t = 1."""
    axis = torch.linspace(-LIMIT, LIMIT, GRID)
    grid = torch.cartesian_prod(axis, axis)
    at = torch.full((len(grid),), max(t, 1))
    with torch.inference_mode():
        kernel = model.reverse_kernel(grid, at, at - 1)
    return grid, kernel.mean - grid


def figure1(model: DiffusionModel, x_0: Tensor, path: Path, seed: int = 0) -> None:
    """Write the figure of a two-dimensional model and data x_0 [N, 2], in model units."""
    times = (0, model.T // 2, 3 * model.T // 4, model.T)
    reverse = trajectory(model, len(x_0), seed, set(times))
    figure, axes = panels(3, len(times), 2.5, 2.5)
    for column, t in enumerate(times):
        points = (forward(model, x_0, t, seed), reverse[t])
        noise = math.sqrt(1 - float(model.process.alpha_bar[t]))
        title = f"t = {t}" + (f", noise {noise:.2g}" if t else "")
        axes[0, column].set_title(title, color=INK, fontsize=10)
        for row, here in enumerate(points):
            axes[row, column].scatter(*here.T.numpy(), s=1.2, color=COLOUR, linewidths=0)
        where, arrow = drift(model, t)
        # Lengths span four orders of magnitude: show their square roots, capped at the median.
        length = arrow.norm(dim=1, keepdim=True)
        arrow = arrow / length.clamp_min(1e-12) * (length / length.median()).clamp(max=1).sqrt()
        axes[2, column].scatter(*points[0].T.numpy(), s=0.5, color=INK, alpha=0.25, linewidths=0)
        axes[2, column].quiver(
            *where.T.numpy(), *arrow.T.numpy(), color=COLOUR, angles="xy", scale=20, width=0.006
        )
    for row, name in enumerate(("forward, q(x_t)", "reverse, p(x_t)", "drift, f_mu(x_t, t) - x_t")):
        axes[row, 0].set_ylabel(name, color=INK)
    for axis in axes.flat:
        axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal")
    write(figure, path)


def figure2(model: DiffusionModel, path: Path, seed: int = 0, rows: int = 30) -> None:
    """Write the figure of a binary model: `rows` chains from T to 0, with ones filled in."""
    times = (model.T, model.T // 2, model.T // 8, 0)
    chains = trajectory(model, rows, seed, set(times))
    figure, axes = panels(1, len(times), 2.5, 3.8)
    red, green, blue = (int(COLOUR[i : i + 2], 16) / 255 for i in (1, 3, 5))
    for column, t in enumerate(times):
        bits = chains[t]
        picture = torch.tensor([red, green, blue, 0.0]).repeat(*bits.shape, 1)
        picture[..., 3] = bits
        axes[0, column].imshow(picture.numpy(), aspect="auto", interpolation="nearest")
        ones = float(bits.mean())
        axes[0, column].set_title(f"t = {t}, {ones:.0%} ones", color=INK, fontsize=10)
    axes[0, 0].set_ylabel("reverse, p(x_t)", color=INK)
    write(figure, path)


def panels(rows: int, columns: int, width: float, height: float) -> tuple[Figure, Any]:
    """Make a figure of panels without ticks, each width x height inches; axes [rows, columns]."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], facecolor="none")
        for spine in axis.spines.values():
            spine.set_color(INK)
    return figure, axes


def write(figure: Figure, path: Path) -> None:
    """Write a figure with a transparent background."""
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, transparent=True, metadata={"Software": None})


def make(models: Path, folder: Path, *, missing: bool = False) -> list[Path]:
    """Write the figures of all existing models, or only `missing` ones; return their paths."""
    made: list[Path] = []
    for name in SMALL:
        artefact, path = artefact_path(models, name), folder / f"{name}.png"
        if not artefact.exists() or (missing and path.exists()):
            continue
        model, metadata = load(artefact)
        if not model.process.continuous:
            figure2(model, path)
        else:
            config = FitConfig.model_validate(metadata.training.config)
            figure1(model, model.space.to_model(data.load(config.data).test[:POINTS]), path)
        made.append(path)
    return [*made, *galleries.make(models, folder, missing=missing)]


def of_model(name: str, folder: Path) -> list[Path]:
    """Return the paths of a model's figures, whether or not they exist."""
    drawn = [picture.name for picture in galleries.PICTURES if picture.model == name]
    return [folder / f"{file}.png" for file in [*drawn, *(n for n in SMALL if n == name)]]
