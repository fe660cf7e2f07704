"""Compare fixed and learned noise schedules on the Swiss roll.

    loss = E log p(x_0) - K,    bits: how far the bound is below the data's own log-density

The data's density is known, so the loss of each example can be measured; most of the spread of K
comes from the data. The loss is measured for the ideal kernel (`ideal`), whose loss is due to the
table only, and for a network fitted under the table. The best possible tables (`best`) have no
network.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from diffusion.likelihood.bound import bound
from diffusion.model import DiffusionModel
from diffusion.process import GaussianProcess
from diffusion.space import Convention
from training import config as configs
from training import data
from training.data.swissroll import SwissRoll, SwissRollConfig
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks
from training.study import ideal

BIT = math.log(2)
FIRST = 1e-3  # beta_1 of every table except cosine, which has its own
FIXED: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear", "first": FIRST, "last": 0.6},
    "cosine": {"kind": "cosine"},
    "geometric": {"kind": "geometric", "first": FIRST, "last": 0.75},
    "linear log SNR": {"kind": "linear-log-snr", "first": 6.9, "last": -4.0},
}
#: The starting table and the settings of each learned schedule.
LEARNED: dict[str, tuple[str, dict[str, Any]]] = {
    "beta, learned from linear": ("linear", {"learn": "beta", "rate": 4.0}),
    "log SNR, learned from linear": (
        "linear log SNR",
        {"learn": "log_snr", "ends": "fixed", "rate": 4.0},
    ),
    "log SNR and its ends, learned": (
        "linear log SNR",
        {"learn": "log_snr", "ends": "learned", "rate": 4.0},
    ),
}
BEST: dict[str, Literal["fixed", "learned"]] = {
    "the best of this beta_1": "fixed",
    "the best of all": "learned",
}
CONVENTIONS: tuple[Convention, Convention] = ("density", "paper")
ROWS = 1000  # draws per ideal loss
GRID = {"levels": 160, "rows": 300}  # for the search for the best tables


class Loss(BaseModel):
    """A loss in bits per example, with its standard error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: float
    error: float

    @classmethod
    def of(cls, nats: float, error: float) -> "Loss":
        """Convert from nats."""
        return cls(bits=nats / BIT, error=error / BIT)

    def __str__(self) -> str:
        return f"{self.bits:.3f} ± {self.error:.3f}"


class Row(BaseModel):
    """The losses under one table, by convention.

    Attributes:
        schedule: its name.
        ideal: the loss of the ideal diagonal kernel.
        network: the loss of the fitted network; empty if none was fitted.
        beta: the table.
        steps, seconds: of the fit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: str
    ideal: dict[Convention, Loss]
    network: dict[Convention, Loss] = {}
    beta: list[float]
    steps: int = 0
    seconds: float = 0.0


def overrides(base: configs.FitConfig, name: str) -> dict[str, Any]:
    """Return the keys that one schedule's fit overrides in the base configuration."""
    start, learn = LEARNED.get(name, (name, None))
    process = {**base.process.model_dump(), "schedule": FIXED[start]}
    return {"process": process, "schedule": learn}


def roll_of(config: configs.FitConfig) -> SwissRoll:
    """Return the Swiss roll that a configuration's data come from.

    Raises:
        ConfigError: the data are of another kind.
    """
    if not isinstance(config.data, SwissRollConfig):
        raise configs.ConfigError(f"schedules are compared on a swissroll, not {config.data.kind}")
    return SwissRoll(config.data.noise)


def ideal_losses(roll: SwissRoll, beta: Tensor, dataset: data.Dataset) -> dict[Convention, Loss]:
    """Compute the losses of the ideal kernel under a table, with the data set's entropy."""
    assert dataset.entropy is not None  # it is a roll
    entropy, error = dataset.entropy
    found: dict[Convention, Loss] = {}
    for convention in CONVENTIONS:
        best = ideal.swissroll(roll, GaussianProcess(beta), convention, rows=ROWS)
        both = math.hypot(error, best.standard_error)
        found[convention] = Loss.of(-entropy - best.bound, both)
    return found


def network_losses(
    model: DiffusionModel, dataset: data.Dataset, plan: configs.EvaluationConfig
) -> dict[Convention, Loss]:
    """Compute a fitted model's losses on `test`; a roll's model units are its data units."""
    rows = dataset.test[: plan.data]
    assert dataset.log_density is not None  # it is a roll
    own, x_0 = dataset.log_density(rows), model.space.to_model(rows).to(model.device)
    found: dict[Convention, Loss] = {}
    for convention in CONVENTIONS:
        each = own - bound(model, x_0, seed=plan.seed, convention=convention).bound.cpu()
        found[convention] = Loss.of(float(each.mean()), float(each.std()) / math.sqrt(len(each)))
    return found


def measure(
    base: configs.FitConfig, schedule: str, dataset: data.Dataset, out: Path, ranks: Ranks
) -> Row | None:
    """Fit a configuration under one schedule and measure it; None if interrupted.

    Args:
        base: the configuration.
        schedule: a key of FIXED or LEARNED, which replaces its own.
        dataset: its data.
        out: the folder of run folders.
        ranks: this process's place.
    """
    config = configs.FitConfig.model_validate(base.model_dump() | overrides(base, schedule))
    folder = out / "".join(c if c.isalnum() else "-" for c in schedule)
    fit = Fit(config, RunOptions(out=folder), ranks, dataset)
    if not fit.run():
        return None
    beta = fit.averaged.process.beta
    return Row(
        schedule=schedule,
        ideal=ideal_losses(roll_of(base), beta, dataset),
        network=network_losses(fit.averaged, dataset, config.evaluation),
        beta=beta.tolist(),
        steps=config.steps,
        seconds=fit.seconds,
    )


def best(base: configs.FitConfig, which: str, dataset: data.Dataset) -> Row:
    """Find and measure the best table for a key of BEST; its search uses other draws."""
    roll, log_snr = roll_of(base), -float(torch.logit(torch.tensor(FIRST, dtype=torch.float64)))
    table = ideal.best_table(roll, base.process.T, log_snr, ends=BEST[which], seed=1, **GRID)
    return Row(schedule=which, ideal=ideal_losses(roll, table, dataset), beta=table.tolist())


def compare(name: str, out: Path, ranks: Ranks) -> list[Row] | None:
    """Measure every schedule, resuming earlier fits; return None if a fit was interrupted."""
    base, found = configs.load(name), list[Row]()
    roll_of(base)  # fail before the work
    dataset = data.load(base.data)
    for schedule in (*FIXED, *LEARNED):
        row = measure(base, schedule, dataset, out, ranks)
        if row is None:
            return None
        found.append(row)
    return found + [best(base, which, dataset) for which in BEST]


def lines(rows: Sequence[Row]) -> list[str]:
    """Format the rows as a Markdown table, best first."""
    found = [
        "| table | density: ideal kernel | fitted network | paper: ideal kernel | fitted network |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.ideal["density"].bits):
        cells = [row.schedule]
        for convention in CONVENTIONS:
            cells += [str(row.ideal[convention]), str(row.network.get(convention, ""))]
        found.append(f"| {' | '.join(cells)} |")
    return found
