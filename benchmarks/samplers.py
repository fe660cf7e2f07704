"""Measure the distance of samples from the data by sampler and number of steps.

    python -m benchmarks.samplers [--digits docs/figures/samplers.png]

In the plane it is the sliced Wasserstein distance of order 2 to 10,000 held-out data in model units
(`benchmarks.mixtures.sliced`); for bits, the total variation to the data's five patterns. Each cell
is the mean over seeds with its standard error; "data" is the distance of as many real data as
samples, the least that can be detected. --digits draws eight digits of models/mnist from the same
noise by each sampler.
"""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.measure import machine, table
from benchmarks.mixtures import sliced
from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.samplers import DDIM, Ancestral, DPMSolver, sample
from training.data.dataset import Dataset
from training.export.export import source
from training.study.galleries import draw

ROWS, FAR = 5_000, 10_000  # samples, and the data that they are compared with
STEPS = (5, 10, 20, 40, 100, 500)
DIGITS = (
    *(Ancestral(steps=50), Ancestral(steps=250)),
    *(DDIM(steps=20), DDIM(steps=50)),
    *(DPMSolver(steps=10), DPMSolver(steps=20)),
)


def total_variation(patterns: Tensor) -> Callable[[Tensor], float]:
    """Build the total variation distance to a uniform distribution over distinct rows [K, D]."""

    def distance(x: Tensor) -> float:
        shares = (x[:, None] == patterns).all(2).double().mean(0)
        return 0.5 * float((shares - 1 / len(patterns)).abs().sum() + 1 - shares.sum())

    return distance


def distance_of(model: DiffusionModel, dataset: Dataset) -> Callable[[Tensor], float]:
    """Build the distance of samples in model units from held-out data."""
    if model.space.kind == "bits":
        return total_variation(dataset.test.unique(dim=0).float())
    far = model.space.to_model(dataset.test[:FAR])
    return lambda x: sliced(x, far)


def cell(distances: Sequence[float]) -> str:
    """Format the mean and standard error, if the sampler's chains stayed finite."""
    if not all(map(math.isfinite, distances)):
        return "not finite"
    error = statistics.stdev(distances) / len(distances) ** 0.5
    return f"{statistics.mean(distances):.3f} ± {error:.3f}"


def measured(name: str, models: Path, seeds: int) -> str:
    """Measure the table of one model."""
    model, metadata = load(models / name / "model.safetensors")
    _, dataset = source(model, metadata)
    distance, real = distance_of(model, dataset), model.space.kind != "bits"
    kinds = (Ancestral, DDIM, DPMSolver) if real else (Ancestral,)
    rows = []
    for kind in kinds:
        cells = [
            cell(
                [
                    distance(sample(model, ROWS, seed=seed, sampler=kind(steps=n)))
                    for seed in range(seeds)
                ]
            )
            if n <= model.T
            else ""
            for n in STEPS
        ]
        rows.append([kind().name, *cells])
    parts = model.space.to_model(dataset.train[: seeds * ROWS]).split(ROWS)
    rows.append(["data", cell([distance(part) for part in parts])] + [""] * (len(STEPS) - 1))
    return table([f"{name}, T = {model.T}", *(f"{n} steps" for n in STEPS)], rows)


def main() -> None:
    """Measure and print the tables, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument(
        "--names", nargs="*", default=["gaussian-mixture", "swissroll", "heartbeat"]
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--digits", type=Path, help="where to draw the picture")
    asked = parser.parse_args()
    print(machine())
    for name in asked.names:
        print(f"\n{measured(name, asked.models, asked.seeds)}", flush=True)
    if asked.digits:
        model, _ = load(asked.models / "mnist" / "model.safetensors")
        panels = [
            (f"{s.name}, {s.steps}", model.space.to_data(sample(model, 8, seed=7, sampler=s)))
            for s in DIGITS
        ]
        draw(model, panels, asked.digits, 2)


if __name__ == "__main__":
    main()
