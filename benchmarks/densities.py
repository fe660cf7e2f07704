"""Compare `noneq train TABLE` and its defaults with simple densities, and fill gaps.

    python -m benchmarks.densities
    python -m benchmarks.densities --gaps   # and fitted untold; 30% of cells hidden

    K = the bound on rows that the fit never saw, log2 density per row, mean over three splits

30% of each data set are withheld from the fit, which holds out its own share of the rest. Simple
densities are fitted to the fit's training rows and measured on the same 30%. With --gaps the same
configuration is fitted again without [observations], and cells of withheld rows, hidden at random,
are drawn by `learned` and by `twisted`: root mean square error of the mean of the draws, continuous
ranked probability score, and how often the middle 90% of the draws has the cell, all in deviations
of a column; for bits the error is that of the probability, and intervals are left out.
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
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.posterior import Learned, PosteriorMethod, Twisted, sample_posterior
from diffusion.samplers import Ancestral
from training import config as configs
from training import user_data as own
from training.data import Dataset
from training.evaluate import baselines
from training.fit import checkpoint as state
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks

Rows = npt.NDArray[np.float64]
HELD = 1000  # rows withheld for generated data
HIDDEN = 0.3  # share of cells
DRAWS = 40


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


def split(name: str, seed: int) -> tuple[Rows, torch.Tensor]:
    """The rows that a fit is given, and those withheld from it."""
    rows = DATA[name](seed)
    own_data = name in ("iris", "wine", "breast_cancer")
    order = np.random.default_rng(seed).permutation(len(rows))
    held = int(0.3 * len(rows)) if own_data else HELD
    return rows[order[held:]], torch.from_numpy(rows[order[:held]]).float()


def fit(name: str, rest: Rows, told: bool = True) -> tuple[Fit, configs.FitConfig, Dataset]:
    """Fit the model of `noneq train` to rows, told or not of what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name.replace('_', '-')}.npy"
        np.save(path, rest)
        written, config, dataset = own.prepare(path, None, Path(folder) / "runs")
        if not told:
            keys = config.model_dump() | {"observations": None}
            keys["network"]["correction"]["conditional"] = False
            config = configs.FitConfig.model_validate(keys)
        options = RunOptions(written.with_suffix(""))
        made = Fit(config, options, Ranks(0, 1, torch.device("cpu")), dataset)
        made.run()
        weights = state.averaged_tensors(state.read_tensors(options.out))
    made.averaged.network.load_state_dict(weights)
    return made, config, dataset


def bounds(model: DiffusionModel, test: torch.Tensor, seed: int) -> torch.Tensor:
    """K of each row, nats; of few rows several, or the noise of one would dominate the error."""
    x_0, seeds = model.space.to_model(test), range(100 * seed, 100 * seed + 1 + 500 // len(test))
    kind = model.space.default_convention
    each = [bound(model, x_0, seed=i, convention=kind, batch=2048).bound for i in seeds]
    return torch.stack(each).mean(0)


def measure(name: str, seed: int) -> dict[str, tuple[float, float]]:
    """Return (bits, gain of the model in bits) by name of density, the model first."""
    rest, test = split(name, seed)
    began = time.process_time()
    made, config, dataset = fit(name, rest)
    values = bounds(made.averaged, test, seed)
    seconds, bit = time.process_time() - began, np.log(2)
    found = {"noneq train": (float(values.mean()) / bit, 0.0)}
    for b in baselines.compare(config, dataset, test, values):
        label = b.name.split(":")[0]
        found[label] = (b.bound / bit, b.gain / bit)
    print(f"  {name} {seed}: {_kept(made)}, {seconds:.0f} s of one core")
    return found


def gaps(name: str, seed: int, rows: int) -> None:
    """Print one line for the bounds and one for each method, with standard errors over rows."""
    rest, test = split(name, seed)
    told, _, _ = fit(name, rest)
    plain, _, _ = fit(name, rest, told=False)
    gain = (bounds(told.averaged, test, seed) - bounds(plain.averaged, test, seed)) / np.log(2)
    print(
        f"{name} {seed}: told {_kept(told)}, not told {_kept(plain)}; told - not told "
        f"{_with_error(gain)} bits a row"
    )
    methods: list[tuple[str, DiffusionModel, PosteriorMethod, int]] = [
        ("learned", told.averaged, Learned(), 40),
        ("twisted", plain.averaged, Twisted(), 100),
    ]
    for label, model, method, steps in methods:
        x_0 = model.space.to_model(test[:rows])
        known = counter_noise(seed, torch.arange(len(x_0)), 0).uniform(x_0.shape[1:]) > HIDDEN
        seen = model.process.saw(x_0, known, torch.zeros_like(x_0))
        began = time.process_time()
        drawn = sample_posterior(
            model, seen, DRAWS, seed=seed, method=method, sampler=Ancestral(steps=steps)
        ).samples
        seconds = time.process_time() - began
        some = ~known.all(1)  # rows with nothing hidden say nothing
        truth, hidden, drawn = x_0[some], ~known[some], drawn[some]
        error = (drawn.mean(1) - truth).square()
        apart = (drawn[:, :, None] - drawn[:, None]).abs().sum((1, 2)) / (DRAWS * (DRAWS - 1))
        crps = (drawn - truth[:, None]).abs().mean(1) - apart / 2
        below = (drawn < truth[:, None]).double().mean(1)
        inside = ((below >= 0.05) & (below <= 0.95)).double()
        each = [_over(values, hidden) for values in (error, crps, inside)]
        words = (
            f"RMSE {float(each[0].mean()) ** 0.5:.3f}, CRPS {_with_error(each[1])}, "
            f"in 90% {_with_error(each[2])}"
        )
        print(f"  {label}: {words}, {1e3 * seconds / len(x_0) / DRAWS:.1f} ms a draw", flush=True)


def _over(values: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The mean over a row's hidden cells."""
    return (values * hidden).sum(1) / hidden.sum(1)


def _with_error(values: torch.Tensor) -> str:
    return f"{float(values.mean()):.3f} ± {float(values.std()) / len(values) ** 0.5:.3f}"


def _kept(made: Fit) -> str:
    assert made.best is not None  # every fit of the user's data has it
    assert made.best.looks is not None
    return f"weights of step {made.best.looks.step} of {made.step}"


def main() -> None:
    """Print a Markdown table for each data set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(DATA), help=", ".join(DATA))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gaps", action="store_true", help="fill gaps instead")
    parser.add_argument("--rows", type=int, default=100, help="of which gaps are filled")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.names:
        if arguments.gaps:
            for seed in range(arguments.seeds):
                gaps(name, seed, arguments.rows)
            continue
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
