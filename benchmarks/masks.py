"""A network that is told which coordinates of the 25 Gaussians were seen, and their values.

One mixture, ten observations of a random share of the coordinates without noise. `learned` is asked
for 50 evaluations a sample: with the mixture's own network, which is exact however it is told, and
with an MLP fitted to exact draws, some of whose coordinates it is told.
"""

from functools import cache
from pathlib import Path

import torch

from benchmarks.known import EXACT, Row
from benchmarks.mixtures import compared, draw, masked
from diffusion.families import Exact
from diffusion.model import DiffusionModel
from diffusion.networks import MLPConfig
from diffusion.posterior import Learned, Method, Product, Twisted, sample_posterior
from diffusion.process import GaussianConfig
from diffusion.samplers import Ancestral
from diffusion.schedule import LogSnrSchedule
from training.config import (
    AverageConfig,
    FitConfig,
    ObjectiveConfig,
    ObservationsConfig,
    OptimiserConfig,
    WatchConfig,
)
from training.data import Dataset, TableConfig
from training.data.dataset import checksum
from training.fit.loop import Fit, RunOptions
from training.fit.parallel import Ranks

_LEARNED = Twisted(proposal="learned")
#: By name: a method, its steps, and whether it asks the fitted network.
METHODS: dict[str, tuple[Method, int, bool]] = {
    "learned": (Learned(), 50, False),
    "learned, fitted": (Learned(), 50, True),
    "twisted, learned proposal, 8 particles": (_LEARNED, 25, False),
    "twisted, learned proposal, 8 particles, fitted": (_LEARNED, 25, True),
    "twisted, 8 particles": (Twisted(covariance="independent"), 50, False),
    "product": (Product(), 400, False),
}
_ROWS = 100_000  # exact draws to fit to
_FITTED = 8  # the most dimensions to fit an MLP in


def measured(features: int, k: int, samples: int, start: str = "") -> list[Row]:
    """Measure distances to the k-th exact posterior, data units, by methods that begin so."""
    of = masked(features, k)
    exact = of.exact(10 * samples, k)
    again = of.exact(samples, k + 500_000)
    rows = [compared(EXACT, again, exact, 0.0)] if EXACT.startswith(start) else []
    for name, (method, steps, fit) in METHODS.items():
        if name.startswith(start) and (features <= _FITTED or not fit):
            model = fitted(features) if fit else of.model
            answer = sample_posterior(
                model,
                of.observation,
                samples,
                seed=k,
                method=method,
                sampler=Ancestral(steps=steps),
            )
            calls = answer.network_evaluations / samples
            rows.append(compared(name, answer.samples[0], exact, calls))
    return rows


@cache
def fitted(features: int) -> DiffusionModel:
    """Fit an MLP to exact draws, or go on with the run folder's."""
    of = masked(features, 0)
    x = draw(of.network, of.network.weights, _ROWS + 2000, 1).float()
    data = Dataset("table", of.model.space, x[2000:], x[:1000], x[1000:2000], checksum(x))
    config = FitConfig(
        name=f"masks-{features}",
        title="A mixture of 25 Gaussians",
        data=TableConfig(file="exact draws"),
        process=GaussianConfig(T=1000, schedule=LogSnrSchedule(first=10.0, last=-9.0)),
        network=MLPConfig(
            features=features, outputs=2, width=128, depth=4, conditional=True, clock="log_snr"
        ),
        prediction="v",
        variance="moment",
        objective=ObjectiveConfig(bound=1.0, simple=20.0),
        observations=ObservationsConfig(families=(Exact(),)),
        optimiser=OptimiserConfig(lr=2e-3, warmup=200),
        average=AverageConfig(decay=0.999),
        watch=WatchConfig(every=2000, samples=500),
        batch=256,
        steps=4000,
    )
    options = RunOptions(Path("runs") / config.name)
    fit = Fit(config, options, Ranks(0, 1, torch.device("cpu")), data)
    if not fit.run():
        raise SystemExit(f"interrupted; the fit goes on from {options.out} when asked again")
    return fit.averaged.eval().requires_grad_(False)
