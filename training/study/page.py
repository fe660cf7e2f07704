"""Write docs/results.md: each experiment's figure in the paper, ours, and the limit or best known.

Our figures are read from the evaluations of shipped artefacts, or from the measurements that
`training.study.paper` wrote to docs/results/NAME.json (`training.provenance`).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from diffusion.checkpoint import Evaluation, Metadata, read_metadata
from diffusion.likelihood.estimator import Spacing
from diffusion.space import Convention
from training import data, provenance
from training.config import FitConfig, artefact_path
from training.evaluate import patches as peer
from training.evaluate.bound import per_dim
from training.study import schedules as compare

BIT = math.log(2)
#: Mean -log2 of the standard normal density over data of unit variance.
NULL_BITS = 0.5 * math.log2(2 * math.pi * math.e)

Value = tuple[float, float]
"""A figure and its standard error."""


@dataclass(frozen=True)
class Quantity:
    """A quantity reported from an evaluation.

    Attributes:
        words: its name and unit.
        convention: of the evaluation that it is read from.
        of: computes the figure.
        digits: digits after the decimal point.
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
        model: name of the artefact.
        quantity: what is reported.
        paper: the paper's figure, "" if it has none.
        limit: the limit, or the best result known elsewhere.
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
    """Convert bits/dim of 8-bit data to K in bits per pixel of data of unit variance.

    A level's probability is its density times 1 / deviation, the deviation in levels, so K is
    channels (log2 deviation - bits/dim); the paper's "pixel" sums the channels.
    """
    per_dim, error = _per_dim(m, e)
    deviation, channels = deviation_of(m), m.space.shape[0]
    return channels * (math.log2(deviation) - per_dim), channels * error


@cache
def _deviation(config: str) -> float:
    dataset = data.load(FitConfig.model_validate_json(config).data)
    return peer.unit_scale(dataset)[1]


def deviation_of(m: Metadata) -> float:
    """The standard deviation of an artefact's training data, dequantised, in levels."""
    return _deviation(json.dumps(m.training.config))


def unit_variance_over_null(m: Metadata, e: Evaluation) -> Value:
    """Compute K - L_null in bits per pixel of data of unit variance."""
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
    Row(f"{ROLL}: an MLP", "swissroll", K, "2.35 (another noise)", "2.818, ideal kernel"),
    Row(f"{ROLL}: an MLP", "swissroll", K_OVER_NULL, "6.45 (another noise)"),
    Row(f"{ROLL}: 16 RBFs", "swissroll-paper", K, "2.35 (another noise)", "2.839, ideal kernel"),
    Row(f"{ROLL}: 16 RBFs", "swissroll-paper", K_OVER_NULL, "6.45 (another noise)"),
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

TABLE_HEAD = "| experiment | what | 2015 | here | limit or best known | held-out data | model |"
HEAD = """# The paper's experiments, run again

Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli, "Deep Unsupervised Learning using Nonequilibrium
Thermodynamics" (2015), beside what this repository's models reach. `make paper` makes this page:
it fits what has no artefact in `models/`, measures what has no file in `docs/results/`, and draws.
"""
ABOUT_TABLE = """K is a lower bound on the mean log-likelihood: higher is better. For bits/dim and
nats lower is better. In brackets is the convention: *paper*, Equation 14 with its fixed last step,
at unit variance; *discretised*, the probability of the exact 8-bit or binary value. K of 8-bit
images is
that of a density constant over each level's cell, log2 of the deviation in levels less bits/dim; a
"pixel" sums its channels, as in the paper. The standard error is over held-out data and noise.
"""
ABOUT_PARZEN = """10,000 samples, each widened into a Gaussian whose width is chosen on 5,000
held-out images; mean over the 10,000 test images, with its error. It was the protocol of its
time and says little about likelihood (Theis, van den Oord and Bethge 2016). Our second line shows
how little: chains that stop early and return the mean of x_0 given x_t give blurred digits, which
lie nearer to other digits than a real digit does, and score above the data themselves.
"""
ABOUT_PEERS = """The same images in the same units, bits a pixel at unit variance. A mixture's
density is of dequantised levels, the diffusion model's is constant over each level's cell. The
paper's 1.489 and 3.536 are of another generator's images.
"""
ABOUT_STEPS = """Bits/dim (less is better) of the bound of the chain that takes only so many of the
T steps, at as many network evaluations, on the first of `test`: *optimal* steps are the best by the
model's profile (Watson et al. 2021), *even* ones evenly spaced, on the same data and noise. Where
jumps have no closed form (bits, `swissroll`) the profile's costs are estimates from its draws, and
from 20 steps on the steps chosen by them are no better than even ones.
"""
ABOUT_SCHEDULES = """What the chain of T = 10 steps loses, E log p(x_0) - K in bits: less is better.
The data are a Swiss roll so wide (noise 0.1) that their density, and with it the ideal kernel (the
best diagonal Gaussian), is known by quadrature. The ideal kernel's loss is the table's own; what
the fitted network loses beyond it is the network's, one small MLP, 2,000 steps of 512 rows under
every table (`python -m training schedules`). beta_2..T or log SNR are learned with the network, by
gradient on K with the noise frozen. The best tables are found by dynamic programming over levels of
log SNR, for the ideal kernel and the convention *density*. The errors are mostly those of data and
draws that all tables share, so that two tables differ by less error than that. A learned table
is close to the best of its kind, wherever it starts; of the fixed ones the geometric is closest.
What a network loses beyond the ideal kernel is mostly smaller than the differences between tables.
"""
SPACINGS: tuple[Spacing, ...] = ("optimal", "even")
TABLE_2 = (
    ("stacked contractive autoencoder", "174 ± 2.3"),
    ("deep belief network", "199 ± 2.9"),
    ("deep generative stochastic network", "309 ± 1.6"),
    ("diffusion, 2015", "317 ± 2.7"),
    ("adversarial network", "325 ± 2.9"),
)
FIGURES = (
    (
        "swissroll",
        "Swiss roll (Figure 1)",
        "Forward, reverse, and the drift, from `models/swissroll`, an MLP.",
    ),
    ("swissroll-paper", "The same, of the paper's network", "16 radial basis functions."),
    (
        "heartbeat-paper",
        "Heartbeat (Figure 2)",
        "Chains of `models/heartbeat-paper`, a row each, from t = T to 0.",
    ),
    (
        "cifar10",
        "CIFAR-10 (Figure 3)",
        "Held-out images, the same with noise, draws from their posterior, draws of the model.",
    ),
    ("deadleaves", "Dead leaves (Figure 4)", "Held-out images and draws of the model."),
    (
        "textures",
        "Textures (Figure 5)",
        "The middle of a held-out texture, drawn given the rest by the paper's method.",
    ),
    ("digits", "MNIST", "Held-out digits and draws of `models/mnist`."),
    ("bits", "Binarised MNIST", "Held-out digits and draws of `models/binarized-mnist`."),
)


def line(row: Row, models: Path) -> str | None:
    """Format a row of the Markdown table; None if its artefact or evaluation is missing."""
    path = artefact_path(models, row.model)
    if not path.exists():
        return None
    m = read_metadata(path)
    found = [e for e in m.evaluation if e.whole and e.convention == row.quantity.convention]
    if not found:
        return None
    value, error = row.quantity.of(m, found[0])
    digits = row.quantity.digits
    rest = f"{found[0].count:,} of {found[0].split}, {found[0].terms or 'all'} terms an example"
    return (
        f"| {row.experiment} | {row.quantity.words} ({row.quantity.convention}) | {row.paper} "
        f"| **{value:.{digits}f}** ± {error:.{digits}f} | {row.limit} | {rest} | {_made(m)} |"
    )


def _made(m: Metadata) -> str:
    training = m.training
    minutes = (training.seconds or 0.0) / 60
    return f"[`{m.name}`](../models/{m.name}/README.md), {minutes:.0f} min on {training.device}"


def measured(folder: Path, name: str) -> Any:  # noqa: ANN401  (as its command found it)
    """Read the result of a measurement, folder/NAME.json; None if there is none."""
    found = provenance.read(folder / f"{name}.json")
    return None if found is None else found.found


def parzen_section(folder: Path) -> str | None:
    """Format the paper's Table 2, with our lines and the score of the training data."""
    found = {name: measured(folder, f"parzen-{name}") for name in ("mnist", "means", "data")}
    if None in found.values():
        return None
    bits = {name: f"**{of['bits']:.0f}** ± {of['bits_error']:.1f}" for name, of in found.items()}
    ways = {name: of.get("sampler", {}) for name, of in found.items()}
    means = f"E[x_0 given x_t] at t = {found['means']['stop']} of {ways['means']['steps']} steps"
    rows = [
        *(f"| {name} | {theirs} | |" for name, theirs in TABLE_2),
        f"| `mnist` here, samples of {ways['mnist']['steps']} steps | | {bits['mnist']} |",
        f"| `mnist` here, {means} | | {bits['means']} |",
        f"| training data in the samples' place | 349 ± 3.3 | {bits['data']} |",
    ]
    return _section(
        "MNIST by Parzen windows (Table 2), bits", "| model | 2015 | here |", rows, ABOUT_PARZEN
    )


def peers_section(folder: Path, models: Path) -> str | None:
    """Compare the dead-leaves model with mixtures fitted to the same images."""
    path = artefact_path(models, "deadleaves")
    found = measured(folder, "peers-deadleaves")
    if found is None or not path.exists():
        return None
    m = read_metadata(path)
    e = next(e for e in m.evaluation if e.whole and e.convention == "discretised")
    (k, error), (gain, _) = unit_variance(m, e), unit_variance_over_null(m, e)
    rows = [f"| `deadleaves`, diffusion | **{k:.3f}** ± {error:.3f} | **{gain:.3f}** |"]
    rows += [f"| {p['model']} | {p['K']:.3f} ± {p['error']:.3f} | {p['gain']:.3f} |" for p in found]
    return _section("Dead leaves and its peers", "| model | K | K - L_null |", rows, ABOUT_PEERS)


def schedules_section(folder: Path) -> str | None:
    """Compare fixed and learned schedules with the best ones."""
    found = measured(folder, "schedules")
    if found is None:
        return None
    head, _, *rows = compare.lines([compare.Row.model_validate(row) for row in found])
    return _section("Schedules, fixed and learned", head, rows, ABOUT_SCHEDULES)


def steps_section(models: Path) -> str | None:
    """Tabulate the bound of chains of fewer steps, one line per model and spacing."""
    names = dict.fromkeys(row.model for row in ROWS)
    rows, numbers = [], set()
    for path in (artefact_path(models, name) for name in names):
        if path.exists():
            m = read_metadata(path)
            ours = [e for e in m.evaluation if e.convention == m.space.default_convention]
            rows += [(m, spacing, _chains(ours, spacing)) for spacing in SPACINGS]
            numbers |= {e.steps for e in ours if e.steps}
    rows = [row for row in rows if row[2]]
    if not rows:
        return None
    columns = sorted(numbers)
    text = []
    for m, spacing, chains in rows:
        counts = "/".join(f"{count:,}" for count in sorted({e.count for e in chains.values()}))
        cells = [per_dim(chains[n]) if n in chains else "" for n in columns]
        text.append(
            f"| `{m.name}`, T = {m.process.T:,} | {spacing} | {counts} | {' | '.join(cells)} |"
        )
    head = "| model | spacing | data | " + " | ".join(f"{n} steps" for n in columns) + " |"
    return _section("Fewer steps", head, text, ABOUT_STEPS)


def _chains(evaluations: Sequence[Evaluation], spacing: Spacing) -> dict[int, Evaluation]:
    """Select the evaluations with one spacing, by number of steps."""
    return {e.steps: e for e in evaluations if e.steps and e.spacing == spacing}


def figures_section(folder: Path) -> str | None:
    """Show the figures that exist."""
    found = [
        f"### {title}\n\n![{title}](figures/{name}.png)\n\n{words}"
        for name, title, words in FIGURES
        if (folder / f"{name}.png").exists()
    ]
    return "\n\n".join(["## Figures", *found]) if found else None


def _section(title: str, head: str, rows: Sequence[str], text: str) -> str:
    rule = "|" + "---|" * (head.count("|") - 1)
    return "\n".join([f"## {title}", "", text, head, rule, *rows])


def write(models: Path, docs: Path) -> Path:
    """Write docs/results.md from the existing files; return its path."""
    lines = [text for row in ROWS if (text := line(row, models)) is not None]
    folder = docs / "results"
    parts = [
        HEAD,
        _section("The table", TABLE_HEAD, lines, ABOUT_TABLE),
        parzen_section(folder),
        peers_section(folder, models),
        steps_section(models),
        schedules_section(folder),
        figures_section(docs / "figures"),
    ]
    path = docs / "results.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(part.rstrip() for part in parts if part) + "\n")
    return path
