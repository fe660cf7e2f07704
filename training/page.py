"""docs/results.md: every experiment of the paper, its number, ours, and the limit or best known.

A figure is read from a shipped artefact's evaluation (`training.results`), or from a measurement
that `training.paper` wrote into docs/results/NAME.json.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion.checkpoint import Evaluation, Metadata, read_metadata
from diffusion.space import Convention
from training.export import artefact_path
from training.results import ROWS, Row, unit_variance, unit_variance_over_null

TABLE_HEAD = "| experiment | what | 2015 | here | limit or best known | held-out data | model |"
HEAD = """# The paper's experiments, run again

Sohl-Dickstein, Weiss, Maheswaranathan and Ganguli, "Deep Unsupervised Learning using Nonequilibrium
Thermodynamics" (2015), beside what this repository's models reach. `make paper` makes this page:
it fits what has no artefact in `models/`, measures what has no file in `docs/results/`, and draws.
"""
ABOUT_TABLE = """K is a lower bound on the mean log-likelihood: higher is better; of bits/dim and
nats less is. In brackets the convention: *paper*, Equation 14 with its fixed last step, at unit
variance; *discretised*, the probability of the exact 8-bit or binary value. K of 8-bit images is
that of a density constant over each level's cell, log2 of the deviation in levels less bits/dim; a
"pixel" sums its channels, as in the paper. The standard error is over held-out data and noise.
"""
ABOUT_PARZEN = """10,000 samples, each widened into a Gaussian whose width is chosen on 5,000
held-out images; mean over the 10,000 test images, with its error. It is the protocol of its time
and says little about likelihood (Theis, van den Oord and Bethge 2016).
"""
ABOUT_PEERS = """The same images in the same units, bits a pixel at unit variance. A mixture's
density is of dequantised levels, the diffusion model's is constant over each level's cell. The
paper's 1.489 and 3.536 are of another generator's images.
"""
ABOUT_SCHEDULES = """A Swiss roll under T = 40 steps, one network and one short fit of 500 steps for
every table (`python -m training schedules`), beside what an ideal diagonal Gaussian kernel reaches
under the same one. The networks are far from theirs, so this ranks fits and not yet schedules.
"""
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
    """A row of the Markdown table; None where the artefact or its evaluation is not there."""
    path = artefact_path(models, row.model)
    if not path.exists():
        return None
    m = read_metadata(path)
    found = [e for e in m.evaluation if _of_all_steps(e, row.quantity.convention)]
    if not found:
        return None
    value, error = row.quantity.of(m, found[0])
    digits = row.quantity.digits
    rest = f"{found[0].count:,} of {found[0].split}, {found[0].terms or 'all'} terms a datum"
    return (
        f"| {row.experiment} | {row.quantity.words} ({row.quantity.convention}) | {row.paper} "
        f"| **{value:.{digits}f}** ± {error:.{digits}f} | {row.limit} | {rest} | {_made(m)} |"
    )


def _of_all_steps(e: Evaluation, convention: Convention) -> bool:
    """Whether it is the ordinary bound of the whole chain."""
    return e.convention == convention and e.steps is None and e.trajectories is None


def _made(m: Metadata) -> str:
    training = m.training
    minutes = (training.seconds or 0.0) / 60
    return f"[`{m.name}`](../models/{m.name}/README.md), {minutes:.0f} min on {training.device}"


def measured(folder: Path, name: str) -> Any:  # noqa: ANN401  (what its command wrote)
    """A measurement that a command wrote, folder/NAME.json; None where there is none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def parzen_section(folder: Path) -> str | None:
    """The paper's Table 2, with our line and the protocol's check on the training data."""
    ours, data_own = measured(folder, "parzen-mnist"), measured(folder, "parzen-data")
    if ours is None or data_own is None:
        return None

    def figure(found: dict[str, Any]) -> str:
        return f"**{found['bits']:.0f}** ± {found['bits_error']:.1f}"

    sampler = ours["sampler"]
    rows = [
        *(f"| {name} | {bits} | |" for name, bits in TABLE_2),
        f"| `mnist` here, {sampler['name']}, {sampler['steps']} steps | | {figure(ours)} |",
        f"| training data in the samples' place | 349 ± 3.3 | {figure(data_own)} |",
    ]
    return _section(
        "MNIST by Parzen windows (Table 2), bits", "| model | 2015 | here |", rows, ABOUT_PARZEN
    )


def peers_section(folder: Path, models: Path) -> str | None:
    """Dead leaves beside the mixtures fitted to the same images."""
    path = artefact_path(models, "deadleaves")
    found = measured(folder, "peers-deadleaves")
    if found is None or not path.exists():
        return None
    m = read_metadata(path)
    e = next(e for e in m.evaluation if _of_all_steps(e, "discretised"))
    (k, error), (gain, _) = unit_variance(m, e), unit_variance_over_null(m, e)
    rows = [f"| `deadleaves`, diffusion | **{k:.3f}** ± {error:.3f} | **{gain:.3f}** |"]
    rows += [f"| {p['model']} | {p['K']:.3f} ± {p['error']:.3f} | {p['gain']:.3f} |" for p in found]
    return _section("Dead leaves and its peers", "| model | K | K - L_null |", rows, ABOUT_PEERS)


def schedules_section(folder: Path) -> str | None:
    """Fixed and learned schedules, as `python -m training schedules` wrote them."""
    path = folder / "schedules.md"
    if not path.exists():
        return None
    return f"## Schedules, fixed and learned\n\n{ABOUT_SCHEDULES}\n{path.read_text()}"


def figures_section(folder: Path) -> str | None:
    """The figures that are there."""
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
    """Write docs/results.md from what is there; returns its path."""
    lines = [text for row in ROWS if (text := line(row, models)) is not None]
    folder = docs / "results"
    parts = [
        HEAD,
        _section("The table", TABLE_HEAD, lines, ABOUT_TABLE),
        parzen_section(folder),
        peers_section(folder, models),
        schedules_section(folder),
        figures_section(docs / "figures"),
    ]
    path = docs / "results.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(part.rstrip() for part in parts if part) + "\n")
    return path
