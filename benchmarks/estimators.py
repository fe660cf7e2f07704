"""Estimators of a posterior from simulations: ours, and those of the library `sbi`.

    fit(task, theta, x)    then    theta ~ p(theta | x)

Ours is what `noneq train TABLE --given x1,x2,...` makes and method `learned` draws from. `sbi` has
its own defaults: neural posterior estimation (NPE), a normalising flow, and neural posterior score
estimation (NPSE), a diffusion model. Ours goes on from what its folder holds.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.simulators import Rows, Simulator
from diffusion.observation import Observation
from diffusion.posterior import Learned, sample_posterior
from diffusion.samplers import Ancestral
from training import user_data as own
from training.fit import checkpoint as state
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks

#: Draws theta [n, size] given x [seen], by a seed.
Draw = Callable[[Rows, int, int], Rows]


@dataclass(frozen=True)
class Fitted:
    """A fitted posterior.

    Attributes:
        draw: draws from it.
        seconds: of a core, that the fit took.
        note: its size and how long it was fitted, in words.
    """

    draw: Draw
    seconds: float
    note: str


def ours(task: Simulator, theta: Rows, x: Rows, folder: Path, steps: int | None = None) -> Fitted:
    """Fit the table of both, as `noneq train --given --limits` does.

    `steps` are those of a chain, None for the method's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / "table.csv"
    if not table.exists():
        names = ",".join((*task.parameters, *task.data))
        rows = np.concatenate([theta, x], 1)
        np.savetxt(table, rows, delimiter=",", header=names, comments="", fmt="%.9g")
    limits = dict.fromkeys(task.parameters, task.limits) if task.limits else None
    written, config, dataset = own.prepare(table, "fit", folder, given=task.data, limits=limits)
    options = RunOptions(folder / "fit", save_every=1000)
    fit = Fit(config, options, Ranks(0, 1, torch.device("cpu")), dataset)
    fit.run()
    weights = state.averaged_tensors(state.read_tensors(written.with_suffix("")))
    model, space = fit.averaged, dataset.space
    model.network.load_state_dict(weights)
    model.tabulate()
    known = torch.zeros(1, space.dims, dtype=torch.bool)
    known[:, task.size :] = True
    sampler = Ancestral(steps=steps or Learned.default_steps)

    def draw(seen: Rows, n: int, seed: int) -> Rows:
        y = torch.zeros(1, space.dims, dtype=torch.float64)
        y[:, task.size :] = torch.from_numpy(seen)
        observation = Observation.of_reals(space.to_model(y), known)
        found = sample_posterior(
            model, observation, n, seed=seed, method=Learned(), sampler=sampler
        )
        return space.to_data(found.samples[0]).double().numpy()[:, : task.size]

    size = sum(each.numel() for each in model.network.parameters())
    kept = fit.best.looks.step if fit.best and fit.best.looks else fit.step
    return Fitted(draw, fit.seconds, f"{size:,} weights, those of step {kept} of {fit.step}")


def npe(task: Simulator, theta: Rows, x: Rows, folder: Path) -> Fitted:
    """Fit `sbi.inference.NPE` with its defaults."""
    from sbi.inference import NPE

    del folder  # nothing of it is kept
    return _sbi(NPE, task, theta, x)


def npse(task: Simulator, theta: Rows, x: Rows, folder: Path) -> Fitted:
    """Fit `sbi.inference.NPSE` with its defaults."""
    from sbi.inference import NPSE

    del folder
    return _sbi(NPSE, task, theta, x)


def _sbi(kind: Any, task: Simulator, theta: Rows, x: Rows) -> Fitted:  # noqa: ANN401
    torch.manual_seed(0)
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # for its logs
        trainer = kind(prior=_prior(task), show_progress_bars=False)
        estimator = trainer.append_simulations(_float(theta), _float(x)).train()
        posterior = trainer.build_posterior(estimator)
    spent = time.process_time() - begun
    size = sum(each.numel() for each in estimator.parameters())

    def draw(seen: Rows, n: int, seed: int) -> Rows:
        torch.manual_seed(seed)
        found: Tensor = posterior.sample((n,), x=_float(seen)[None], show_progress_bars=False)
        return np.asarray(found.double().numpy())

    epochs = trainer.summary["epochs_trained"][-1]
    return Fitted(draw, spent, f"{size:,} weights, {epochs} epochs")


def _prior(task: Simulator) -> torch.distributions.Distribution:
    """The task's prior, as `sbi` takes it."""
    if task.limits is not None:
        low, high = (torch.full((task.size,), limit) for limit in task.limits)
        return torch.distributions.Independent(torch.distributions.Uniform(low, high), 1)
    covariance = torch.from_numpy(task.covariance).float()
    return torch.distributions.MultivariateNormal(torch.zeros(task.size), covariance)


def _float(rows: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.float32(rows))


#: By name; those whose names begin alike share a fit.
ESTIMATORS: dict[str, Callable[[Simulator, Rows, Rows, Path], Fitted]] = {
    "noneq": ours,
    "noneq at 150 steps": partial(ours, steps=150),
    "NPE": npe,
    "NPSE": npse,
}
