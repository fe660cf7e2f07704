"""Every experiment of the paper, from one command: fit what is not fitted, measure, write the page.

    for each experiment without an artefact:  fit (or go on with a fit), export, evaluate
    for each measurement without a file:      make it
    docs/results.md, docs/figures/            from what is there

What has been done is not done again: delete models/NAME or docs/results/NAME.json to have it made
anew.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffusion.checkpoint import load
from diffusion.plan import Ancestral
from training import config as configs
from training import data, figures, page, parzen, peer, results
from training.export import artefact_path, export, source
from training.fit import Fit, RunOptions
from training.parallel import Ranks, pick_device

PEER_DATA = 2000  # of test, the first ones: those that deadleaves.toml evaluates its model on
EXPERIMENTS = tuple(dict.fromkeys(row.model for row in results.ROWS))


@dataclass(frozen=True)
class Places:
    """Where things are: the artefacts, the runs, and the documents."""

    models: Path = Path("models")
    runs: Path = Path("runs")
    docs: Path = Path("docs")

    @property
    def measured(self) -> Path:
        """The folder of measurements."""
        return self.docs / "results"


def make_model(name: str, places: Places, device: str, *, large: bool, compiled: bool) -> bool:
    """Fit and export one experiment, unless its artefact is there; False if it was interrupted.

    Args:
        name: of the experiment.
        places: where things are.
        device: auto, cpu, cuda or cuda:N.
        large: at a GPU's size, training/configs/gpu, where there is one.
        compiled: torch.compile the network.
    """
    if artefact_path(places.models, name).exists():
        return True
    wide = large and (configs.FOLDER / "gpu" / f"{name}.toml").exists()
    config, out = (
        (f"gpu/{name}", places.runs / "gpu" / name) if wide else (name, places.runs / name)
    )
    place = Ranks(0, 1, pick_device(device))
    if not Fit(configs.load(config), RunOptions(out=out, compile=compiled), place).run():
        return False
    export(config, out=out, models=places.models, device=place.device)
    return True


def parzen_of_model(places: Places, device: torch.device) -> dict[str, Any]:
    """Table 2: the Parzen score of 10,000 samples of `mnist`."""
    path = artefact_path(places.models, "mnist")
    model, metadata = load(path, device)
    _, dataset = source(model, metadata)
    # 500 draws by DPM-Solver++ in 20 or 40 steps score 50 bits less than 500 ancestral ones.
    sampler = Ancestral(steps=30)
    folder = parzen.run_folder(places.runs / "parzen" / "mnist", model, sampler, 0)
    drawn = parzen.samples(model, 10_000, sampler=sampler, seed=0, folder=folder)
    found = parzen.of_samples(dataset, drawn)
    return found.model_dump() | {"sampler": sampler.model_dump(), "seed": 0}


def parzen_of_data(_: Places, __: torch.device) -> dict[str, Any]:
    """Table 2's last line: the score of 10,000 training images in the samples' place."""
    dataset = data.load(configs.load("mnist").data)
    return parzen.of_samples(dataset, dataset.train[:10_000]).model_dump()


def peers(_: Places, __: torch.device) -> list[dict[str, Any]]:
    """Gaussian mixtures of the dead leaves."""
    dataset = data.load(configs.load("deadleaves").data)
    return [found.model_dump() for found in peer.compare(dataset, peer.PeerConfig(), PEER_DATA)]


#: By the name of its file: the model that it stands beside, and how it is made.
MEASUREMENTS: dict[str, tuple[str, Callable[[Places, torch.device], Any]]] = {
    "parzen-mnist": ("mnist", parzen_of_model),
    "parzen-data": ("mnist", parzen_of_data),
    "peers-deadleaves": ("deadleaves", peers),
}


def measure(name: str, places: Places, device: torch.device) -> None:
    """Make one measurement, unless its file is there."""
    path = places.measured / f"{name}.json"
    if path.exists():
        return
    found = MEASUREMENTS[name][1](places, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"written: {path}", file=sys.stderr)


def run(
    names: Sequence[str],
    places: Places,
    device: str,
    *,
    large: bool = False,
    compiled: bool = False,
) -> list[Path] | None:
    """All of it; the paths written, or None if a fit was interrupted.

    Args:
        names: which experiments are to be fitted where they have no artefact; the others' lines
            are written where they have one.
        places: where things are.
        device: auto, cpu, cuda or cuda:N.
        large: at a GPU's size.
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
    for name, (model, _) in MEASUREMENTS.items():
        if artefact_path(places.models, model).exists():
            measure(name, places, there)
    made = figures.make(places.models, places.docs / "figures")
    return [*made, page.write(places.models, places.docs)]
