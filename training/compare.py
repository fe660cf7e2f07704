"""Schedules held against each other: one network, one fit, one roll, fixed and learned tables.

    python -m training schedules      writes schedules.json and schedules.md

Beside each K stands what an ideal diagonal Gaussian kernel reaches under the same table, so that
the schedule's part of the loss can be told from the network's.
"""

import json
import math
from pathlib import Path
from typing import Any

from diffusion.process import GaussianProcess
from diffusion.space import Convention
from training import config as configs
from training import data, ideal
from training.data.swissroll import SwissRoll, SwissRollConfig
from training.evaluate import evaluate
from training.fit import Fit, RunOptions
from training.parallel import Ranks

#: Each begins with beta_1 = 1e-4, but the cosine, which has its own.
FIXED: dict[str, dict[str, Any]] = {
    "linear": {"kind": "linear", "first": 1e-4, "last": 0.25},
    "cosine": {"kind": "cosine"},
    "geometric": {"kind": "geometric", "first": 1e-4, "last": 0.4},
    "linear-log-snr": {"kind": "linear-log-snr", "first": 9.21, "last": -5.0},
}
#: What is learned, and from which start.
LEARNED: dict[str, tuple[str, dict[str, Any]]] = {
    "learned beta": ("geometric", {"learn": "beta", "rate": 4.0}),
    "learned log SNR": ("linear-log-snr", {"learn": "log_snr", "ends": "fixed", "rate": 4.0}),
    "learned log SNR and ends": (
        "linear-log-snr",
        {"learn": "log_snr", "ends": "learned", "rate": 4.0},
    ),
}
CONVENTIONS: tuple[Convention, Convention] = ("density", "paper")


def overrides(base: configs.FitConfig, name: str) -> dict[str, Any]:
    """What the fit of one schedule has in place of the base configuration's keys."""
    start, learn = LEARNED.get(name, (name, None))
    process = {**base.process.model_dump(), "schedule": FIXED[start]}
    return {"process": process, "schedule": learn}


def measure(name: str, schedule: str, out: Path, ranks: Ranks, strata: int = 500) -> dict[str, Any]:
    """Fit the configuration `name` under one schedule, and measure it; bits.

    Args:
        name: of the configuration, or its path.
        schedule: a key of FIXED or LEARNED.
        out: the folder of run folders.
        ranks: this process's place.
        strata: of the ideal's data.
    """
    base = configs.load(name)
    config = configs.load(name, overrides(base, schedule))
    if not isinstance(config.data, SwissRollConfig):
        raise configs.ConfigError(f"schedules are compared on a swissroll, not {config.data.kind}")
    dataset = data.load(config.data)
    fit = Fit(config, RunOptions(out=out / schedule.replace(" ", "-")), ranks, dataset)
    fit.run()
    process = fit.averaged.process
    assert isinstance(process, GaussianProcess)  # the roll's
    plan = config.evaluation
    found = evaluate(
        fit.averaged, dataset, CONVENTIONS, count=plan.data, seed=plan.seed, quiet=True
    )
    row: dict[str, Any] = {"schedule": schedule, "steps": config.steps, "seed": config.seed}
    for e in found:
        best = ideal.swissroll(SwissRoll(config.data.noise), process, e.convention, rows=strata)
        row[e.convention] = {
            "bits": e.bits,
            "standard_error": e.standard_error / math.log(2),
            "ideal": best.bound / math.log(2),
            "ideal_standard_error": best.standard_error / math.log(2),
        }
        row["entropy"] = None if e.entropy is None else e.entropy / math.log(2)
    return row | {"beta": process.beta.tolist()}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, best first."""
    lines = [
        "| schedule | K, density (bits) | ideal kernel | K, paper (bits) | ideal kernel |",
        "|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: -row["density"]["bits"]):
        cells = [row["schedule"]]
        for convention in CONVENTIONS:
            of = row[convention]
            cells.append(f"{of['bits']:.3f} ± {of['standard_error']:.3f}")
            cells.append(f"{of['ideal']:.3f} ± {of['ideal_standard_error']:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    if rows[0]["entropy"] is not None:
        lines.append(f"\nMinus the data's entropy: {-rows[0]['entropy']:.3f} bits.")
    return "\n".join(lines) + "\n"


def make(name: str, folder: Path, out: Path, ranks: Ranks) -> list[Path]:
    """Measure every schedule; both files grow with each, and a run that was stopped goes on."""
    folder.mkdir(parents=True, exist_ok=True)
    document, table = folder / "schedules.json", folder / "schedules.md"
    rows: list[dict[str, Any]] = []
    for schedule in (*FIXED, *LEARNED):
        rows.append(measure(name, schedule, out, ranks))
        document.write_text(json.dumps(rows, indent=1) + "\n")
        table.write_text(markdown(rows))
    return [document, table]
