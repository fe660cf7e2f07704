"""docs/results.md: every experiment of the paper, its number, ours, and the limit or best known.

A figure is read from a shipped artefact's evaluation, or from a measurement that one of `training`'s
commands wrote; none is typed in but the paper's own and those of others.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.checkpoint import Evaluation, Metadata, read_metadata
from diffusion.space import Convention
from training import data
from training.config import FitConfig
from training.export import artefact_path

BIT = math.log(2)
#: -log2 of the standard normal's density, on average over data of unit variance.
NULL_BITS = 0.5 * math.log2(2 * math.pi * math.e)

Value = tuple[float, float]
"""A figure and its standard error."""


@dataclass(frozen=True)
class Quantity:
    """What of an evaluation is reported.

    Attributes:
        words: its name and unit.
        convention: of the evaluation that it is read from.
        of: the figure.
        digits: after the point.
    """

    words: str
    convention: Convention
    of: Callable[[Metadata, Evaluation], Value]
    digits: int = 3


@dataclass(frozen=True)
class Row:
    """A line of the table: one quantity of one artefact.

    Attributes:
        experiment: in words.
        model: whose artefact.
        quantity: what is read.
        paper: the paper's figure, "" where it has none.
        limit: the limit, or the best known of others.
    """

    experiment: str
    model: str
    quantity: Quantity
    paper: str = ""
    limit: str = ""


def _bits(_: Metadata, e: Evaluation) -> Value:
    return e.bits, e.standard_error / BIT


def _over_null(_: Metadata, e: Evaluation) -> Value:
    return (e.bound - e.null) / BIT, e.standard_error / BIT


def _nats(_: Metadata, e: Evaluation) -> Value:
    return -e.bound, e.standard_error


def _per_dim(m: Metadata, e: Evaluation) -> Value:
    return e.bits_per_dim, e.standard_error / BIT / m.space.dims


def unit_variance(m: Metadata, e: Evaluation) -> Value:
    """K in bits a pixel of data of unit variance, from bits/dim of 8-bit data.

    A level's probability is its density times 1 / deviation, the deviation in levels, so K is
    channels (log2 deviation - bits/dim); the paper's "pixel" sums the channels.
    """
    per_dim, error = _per_dim(m, e)
    rows = data.load(FitConfig.model_validate(m.training.config).data).train
    channels = m.space.shape[0]
    deviation = float(rows.double().std())
    return channels * (math.log2(deviation) - per_dim), channels * error


def unit_variance_over_null(m: Metadata, e: Evaluation) -> Value:
    """K - L_null in bits a pixel of data of unit variance."""
    value, error = unit_variance(m, e)
    return value + m.space.shape[0] * NULL_BITS, error


K = Quantity("K, bits", "paper", _bits)
K_OVER_NULL = Quantity("K - L_null, bits", "paper", _over_null)
OWN_LAST = Quantity("log-probability with the model's own last step, bits", "discretised", _bits)
BITS_PER_DIM = Quantity("bits/dim of the 256 levels", "discretised", _per_dim, 4)
NATS = Quantity("nats a digit", "discretised", _nats, 2)
PIXEL = Quantity("K, bits a pixel at unit variance", "discretised", unit_variance)
PIXEL_OVER_NULL = Quantity(
    "K - L_null, bits a pixel at unit variance", "discretised", unit_variance_over_null
)

ROLL, BEAT = "Swiss roll, T = 40", "Heartbeat, T = 2000"
CIFAR, LEAVES = "CIFAR-10, T = 1000", "Dead leaves, T = 1000"
ROWS = (
    Row(f"{ROLL}: the paper's network", "swissroll-paper", K, "2.35"),
    Row(f"{ROLL}: the paper's network", "swissroll-paper", K_OVER_NULL, "6.45"),
    Row(f"{ROLL}: an MLP", "swissroll", K, "2.35"),
    Row(f"{ROLL}: an MLP", "swissroll", K_OVER_NULL, "6.45"),
    Row(f"{BEAT}: the paper's network", "heartbeat-paper", K, "-2.414", "-2.371, ideal kernel"),
    Row(f"{BEAT}: the paper's network", "heartbeat-paper", OWN_LAST, "", "-2.322"),
    Row(f"{BEAT}: a residual MLP", "heartbeat", K, "-2.414", "-2.371, ideal kernel"),
    Row(f"{BEAT}: a residual MLP", "heartbeat", OWN_LAST, "", "-2.322"),
    Row(LEAVES, "deadleaves", PIXEL, "1.489 (other images)"),
    Row(LEAVES, "deadleaves", PIXEL_OVER_NULL, "3.536 (other images)"),
    Row("MNIST, T = 1000", "mnist", BITS_PER_DIM, "", "0.97 flows, 0.62 autoregressive"),
    Row("Binarised MNIST, T = 1000", "binarized-mnist", NATS, "", "79.0 to 79.9"),
    Row(CIFAR, "cifar10", BITS_PER_DIM, "4.20", "3.70 DDPM, 2.65 VDM"),
    Row(CIFAR, "cifar10", PIXEL, "5.4"),
    Row(CIFAR, "cifar10", PIXEL_OVER_NULL, "11.5"),
    Row("Textures, T = 1000", "textures", BITS_PER_DIM),
)


def line(row: Row, models: Path) -> str | None:
    """A row of the Markdown table; None where the artefact or its evaluation is not there."""
    path = artefact_path(models, row.model)
    if not path.exists():
        return None
    m = read_metadata(path)
    found = [e for e in m.evaluation if e.convention == row.quantity.convention]
    if not found:
        return None
    value, error = row.quantity.of(m, found[0])
    digits = row.quantity.digits
    rest = f"{found[0].count:,} of {found[0].split}, {found[0].terms or 'all'} terms a datum"
    return (
        f"| {row.experiment} | {row.quantity.words} ({row.quantity.convention}) | {row.paper} "
        f"| **{value:.{digits}f}** ± {error:.{digits}f} | {row.limit} | {rest} | {_made(m)} |"
    )


def _made(m: Metadata) -> str:
    training = m.training
    minutes = (training.seconds or 0.0) / 60
    return f"[`{m.name}`](../models/{m.name}/README.md), {minutes:.0f} min on {training.device}"


def measured(folder: Path, name: str) -> Any:  # noqa: ANN401  (what its command wrote)
    """A measurement that a command wrote, folder/NAME.json; None where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write(models: Path, docs: Path) -> list[Path]:
    """Write docs/results.md from what is there; returns the paths of what was written."""
    path = docs / "results.md"
    lines = [row_line for row in ROWS if (row_line := line(row, models)) is not None]
    parts = [HEAD, "\n".join([*TABLE, *lines])]
    parts += [text for text in (parzen(docs / "results"), peers(docs / "results", models)) if text]
    parts += [f"## {title}\n\n![{title}](figures/{name}.png)\n\n{words}" for name, title, words in FIGURES
              if (docs / "figures" / f"{name}.png").exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n")
    return [path]
