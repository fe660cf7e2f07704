"""Reproduce every experiment of the paper: fit, measure, draw and write the results page.

    for each experiment without an artefact:  fit (or resume a fit), export, evaluate
    for each measurement without a file:      make it
    docs/figures/                             missing figures
    docs/results.md                           from all that exists

Existing results are kept: delete models/NAME or docs/results/NAME.json to make them again. A new
model deletes the figures and measurements of the old one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion.checkpoint import load
from diffusion.samplers import Ancestral
from training import config as configs
from training import data, provenance
from training.config import artefact_path
from training.evaluate import parzen
from training.evaluate import patches as peer
from training.export.export import export, source
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks, pick_device
from training.study import figures, page
from training.study import schedules as compare

COMMAND = "python -m training paper"
SAMPLES = 10_000  # of the Parzen score, as in the original protocol
PEER = peer.PeerConfig()
PEER_DATA = 2000  # first rows of `test`, the ones that deadleaves.toml evaluates on
EXPERIMENTS = tuple(dict.fromkeys(row.model for row in page.ROWS))


@dataclass(frozen=True)
class Places:
    """The folders of the artefacts, the runs and the documents."""

    models: Path = Path("models")
    runs: Path = Path("runs")
    docs: Path = Path("docs")

    @property
    def figures(self) -> Path:
        """The folder of figures."""
        return self.docs / "figures"

    def measured(self, name: str) -> Path:
        """The file of a measurement."""
        return self.docs / "results" / f"{name}.json"

    def has(self, model: str) -> bool:
        """Whether a model exists and is complete: its card is written last."""
        path = artefact_path(self.models, model)
        return path.exists() and path.with_name("README.md").exists()


def make_model(name: str, places: Places, device: str, *, large: bool, compiled: bool) -> bool:
    """Fit and export one experiment unless it exists; return False if interrupted.

    Args:
        name: of the experiment.
        places: the folders.
        device: auto, cpu, cuda or cuda:N.
        large: use the GPU-sized configuration in training/configs/gpu, if any.
        compiled: torch.compile the network.
    """
    if places.has(name):
        return True
    wide = large and (configs.FOLDER / "gpu" / f"{name}.toml").exists()
    config = configs.load(f"gpu/{name}" if wide else name)
    out, place = places.runs / config.called, Ranks(0, 1, pick_device(device))
    if not Fit(config, RunOptions(out=out, compile=compiled), place).run():
        return False
    for path in (*figures.of_model(name, places.figures), *_of_model(name, places)):
        path.unlink(missing_ok=True)
    export(config.called, out=out, models=places.models, device=place.device)
    return True


def parzen_of_model(
    places: Places, device: torch.device, *, stopped: bool = False
) -> parzen.ModelScore:
    """Compute Table 2: the Parzen score of samples of `mnist`, or of stopped chains' means."""
    model, metadata = load(artefact_path(places.models, "mnist"), device)
    _, dataset = source(model, metadata)
    # Samples: 500 by DPM-Solver++ in 20 or 40 steps score 50 bits less than 500 ancestral ones.
    # Means: of stops at .85, .83, .81, .80, .79, .77, .75 T, .81 scores best on 3,000 `valid` rows.
    steps, stop = (model.T // 10, round(0.81 * model.T)) if stopped else (30, 0)
    sampler = Ancestral(steps=steps)
    folder = parzen.run_folder(places.runs / "parzen" / "mnist", model, sampler, 0, stop)
    return parzen.of_model(
        model, dataset, SAMPLES, sampler=sampler, seed=0, folder=folder, stop=stop
    )


def parzen_of_means(places: Places, device: torch.device) -> parzen.ModelScore:
    """Compute Table 2 with the means E[x_0 | x_t] of stopped chains instead of samples."""
    return parzen_of_model(places, device, stopped=True)


def parzen_of_data(_: Places, __: torch.device) -> parzen.ParzenScore:
    """Compute Table 2's last line: the score of training images instead of samples."""
    return parzen.of_data(data.load(configs.load("mnist").data), SAMPLES)


def peers(_: Places, __: torch.device) -> list[peer.Measured]:
    """Fit and score Gaussian mixtures on the dead leaves."""
    dataset = data.load(configs.load("deadleaves").data)
    return peer.compare(dataset, PEER, PEER_DATA)


def schedules(places: Places, device: torch.device) -> list[compare.Row] | None:
    """Compare fixed and learned schedules, one fit each; None if interrupted."""
    return compare.compare("schedules", places.runs / "schedules", Ranks(0, 1, device))


@dataclass(frozen=True)
class Measurement:
    """A file of docs/results, made if `model` exists: `of` the model, or only of its data."""

    model: str
    make: Callable[[Places, torch.device], Any]
    of: bool = False


#: Keyed by file name.
MEASUREMENTS = {
    "parzen-mnist": Measurement("mnist", parzen_of_model, of=True),
    "parzen-means": Measurement("mnist", parzen_of_means, of=True),
    "parzen-data": Measurement("mnist", parzen_of_data),
    "peers-deadleaves": Measurement("deadleaves", peers),
    "schedules": Measurement("swissroll", schedules),
}


def _of_model(name: str, places: Places) -> list[Path]:
    """Return the files of measurements of a model."""
    return [places.measured(file) for file, m in MEASUREMENTS.items() if m.of and m.model == name]


def measure(name: str, places: Places, device: torch.device) -> bool:
    """Make one measurement unless its file exists; return False if interrupted."""
    path = places.measured(name)
    if path.exists():
        return True
    found = provenance.measure(COMMAND, device, lambda: MEASUREMENTS[name].make(places, device))
    if found.found is None:
        return False
    provenance.write(path, found)
    return True


def run(
    names: Sequence[str],
    places: Places,
    device: str,
    *,
    large: bool = False,
    compiled: bool = False,
) -> list[Path] | None:
    """Run everything; return the paths written, or None if interrupted.

    Args:
        names: the experiments to fit if they have no artefact; others are only reported.
        places: the folders.
        device: auto, cpu, cuda or cuda:N.
        large: use GPU-sized configurations.
        compiled: torch.compile the networks that are fitted.

    Raises:
        ValueError: no such experiment.
    """
    unknown = sorted(set(names) - set(EXPERIMENTS))
    if unknown:
        raise ValueError(f"no experiment {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    for name in names:
        if not make_model(name, places, device, large=large, compiled=compiled):
            return None
    there = pick_device(device)
    for name, measurement in MEASUREMENTS.items():
        if places.has(measurement.model) and not measure(name, places, there):
            return None
    made = figures.make(places.models, places.figures, missing=True)
    return [*made, page.write(places.models, places.docs)]
