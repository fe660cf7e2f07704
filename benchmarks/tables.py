"""Compare `noneq train TABLE` and its defaults with simple densities.

    python -m benchmarks.tables

    K = the bound on rows that the fit never saw, log2 density per row, mean over three splits

30% of each data set are withheld from the fit, which holds out its own share of the rest. Simple
densities are fitted to the fit's training rows and measured on the same 30%.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from diffusion.likelihood.bound import bound
from training import user_data as own
from training.evaluate import baselines
from training.fit import checkpoint as state
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks

Rows = npt.NDArray[np.float64]
HELD = 1000  # rows withheld for generated data


def _sklearn(name: str) -> Callable[[int], Rows]:
    def load(_: int) -> Rows:
        from sklearn import datasets

        return np.asarray(getattr(datasets, f"load_{name}")().data, np.float64)

    return load


def gaussian(seed: int) -> Rows:
    """Draw 300 + HELD rows of a correlated Gaussian in 8 dimensions."""
    dice = np.random.default_rng([100, seed])
    factor = dice.normal(size=(8, 8))
    return dice.normal(size=(300 + HELD, 8)) @ factor.T + dice.normal(size=8)


def classes(seed: int) -> Rows:
    """Draw 600 + HELD rows of 60 bits in three classes, each 1 with probability .85 or .15."""
    dice = np.random.default_rng([100, seed])
    p = np.where(dice.random((3, 60)) < 0.5, 0.85, 0.15)
    return (dice.random((600 + HELD, 60)) < p[dice.integers(0, 3, 600 + HELD)]).astype(np.float64)


def moons(seed: int) -> Rows:
    """Draw 2000 + HELD rows of two moons, as in docs/data.md."""
    dice = np.random.default_rng([100, seed])
    n = 2000 + HELD
    turn, lower = dice.uniform(0, np.pi, n), dice.integers(0, 2, n)
    x = np.where(lower, 1 - np.cos(turn), np.cos(turn))
    y = np.where(lower, 0.5 - np.sin(turn), np.sin(turn))
    rows: Rows = np.column_stack([x, y]) + dice.normal(0, 0.08, (n, 2))
    return rows * [10, 5] + [100, 20]


def skewed(seed: int) -> Rows:
    """Draw 500 + HELD rows: log-normal and Student's t (3) on very different scales, and a mix."""
    dice = np.random.default_rng([100, seed])
    a, b = dice.normal(size=500 + HELD), dice.standard_t(3, size=500 + HELD)
    return np.column_stack([1e6 * np.exp(a), 1e-3 * b, a + b + dice.normal(size=len(a))])


def one_column(seed: int) -> Rows:
    """Draw 200 + HELD rows of one exponential column."""
    return np.random.default_rng([100, seed]).exponential(5, size=(200 + HELD, 1))


DATA: dict[str, Callable[[int], Rows]] = {
    "iris": _sklearn("iris"),
    "wine": _sklearn("wine"),
    "breast_cancer": _sklearn("breast_cancer"),
    "gaussian": gaussian,
    "classes": classes,
    "skewed": skewed,
    "one_column": one_column,
    "moons": moons,
}


def measure(name: str, seed: int) -> dict[str, tuple[float, float]]:
    """Return (bits, gain of the model in bits) by name of density, the model first."""
    rows = DATA[name](seed)
    own_data = name in ("iris", "wine", "breast_cancer")
    order = np.random.default_rng(seed).permutation(len(rows))
    held = int(0.3 * len(rows)) if own_data else HELD
    rest, test = rows[order[held:]], torch.from_numpy(rows[order[:held]]).float()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name.replace('_', '-')}.npy"
        np.save(path, rest)
        began = time.process_time()
        written, config, dataset = own.prepare(path, None, Path(folder) / "runs")
        fit = Fit(config, RunOptions(written.with_suffix("")), Ranks(0, 1, torch.device("cpu")))
        fit.run()
        weights = state.averaged_tensors(state.read_tensors(written.with_suffix("")))
    fit.averaged.network.load_state_dict(weights)
    space = dataset.space
    # With few rows the noise of one estimate would dominate the error.
    x_0, seeds = space.to_model(test), range(100 * seed, 100 * seed + 1 + 500 // len(test))
    kind = space.default_convention
    each = [bound(fit.averaged, x_0, seed=i, convention=kind, batch=2048).bound for i in seeds]
    values = torch.stack(each).mean(0)
    seconds, bit = time.process_time() - began, np.log(2)
    found = {"noneq train": (float(values.mean()) / bit, 0.0)}
    for b in baselines.compare(config, dataset, test, values):
        label = b.name.split(":")[0]
        found[label] = (b.bound / bit, b.gain / bit)
    assert fit.best is not None  # every fit of the user's data has it
    assert fit.best.looks is not None
    kept = fit.best.looks.step
    print(f"  {name} {seed}: weights of step {kept} of {fit.step}, {seconds:.0f} s of one core")
    return found


def main() -> None:
    """Print a Markdown table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(DATA), help=", ".join(DATA))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names:
        runs = [measure(name, seed) for seed in range(arguments.seeds)]
        print(f"\n{name}\n\n| density | log2 density a row | noneq train's gain |\n|---|---|---|")
        for label in runs[0]:
            bits, gain = np.array([run[label] for run in runs if label in run]).T
            error = [
                x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.nan for x in (bits, gain)
            ]
            told = "" if label == "noneq train" else f"{gain.mean():+.2f} ± {error[1]:.2f}"
            print(f"| {label} | {bits.mean():.2f} ± {error[0]:.2f} | {told} |")
        print(flush=True)


if __name__ == "__main__":
    main()
