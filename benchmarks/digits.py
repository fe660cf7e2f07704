"""Real digits: are posteriors calibrated, and what do they make of pixels that are hidden?

Calibration is that of simulations: x_0 from the model by the same chain, y from x_0, n draws from
the posterior of y; the rank of f(x_0) among f of the draws is uniform on 0..n for any f when the
draws are the posterior's (Talts, Betancourt, Simpson, Vehtari and Gelman 2018). Distances of
histograms from flat are chi-square, sum (count - expected)^2 / expected, of n degrees.

Test digits are read by a linear reader, ridge regression of the labels on training digits: a fixed
judge of what the completions show, and no good classifier.
"""

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.known import Row
from diffusion.checkpoint import load
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.plan import Ancestral
from diffusion.posterior import Method, Posterior, Product, Resample, Twisted, draw
from diffusion.sampling import sample
from training.data import MnistConfig, mnist

STEPS = 50
METHODS: dict[str, tuple[Method, int]] = {
    "product": (Product(), 250),
    "resample": (Resample(jump=5, times=5), STEPS),
    "twisted, 8 particles": (Twisted(particles=8), STEPS),
}
HIDDEN = ("right half", "central box", "90%")
READ = 20_000  # training digits that the reader is fitted to
_EVENT = (1, 28, 28)


@cache
def model() -> DiffusionModel:
    """models/mnist, with what its steps say worked out once."""
    found, _ = load(Path("models/mnist/model.safetensors"))
    found.eval().requires_grad_(False).tabulate()
    return found


def known(hidden: str) -> Tensor:
    """Which pixels are seen, bool [1, 28, 28]."""
    seen = torch.ones(_EVENT, dtype=torch.bool)
    if hidden == "right half":
        seen[:, :, 14:] = False
    elif hidden == "central box":
        seen[:, 8:20, 8:20] = False
    else:
        uniform = counter_noise(11, torch.arange(1), 0).uniform(_EVENT)[0]
        seen = uniform < 0.1
    return seen


def ranks(name: str, hidden: str, part: int, draws: int, samples: int, steps: int) -> list[Row]:
    """Counts of the ranks, 0..samples, of three scalars of what is hidden.

    Args:
        name: a method.
        hidden: of `known`.
        part: which of several sets of draws; they add up.
        draws: data from the model.
        samples: posterior draws of each.
        steps: of every chain, the data's own too.
    """
    sampler, seed = Ancestral(steps=steps), 100 + 10 * part
    x_0 = sample(model(), draws, seed=seed, sampler=sampler)
    observation = Observation.of_reals(x_0, known(hidden).expand(draws, *_EVENT))
    method, _ = METHODS[name]
    found = draw(model(), observation, samples, seed=seed + 1, method=method, sampler=sampler)
    onto = scalars(hidden)
    of_x_0 = _hidden(x_0, hidden) @ onto
    of_draws = _hidden(found.samples.flatten(0, 1), hidden) @ onto
    below = (of_draws.unflatten(0, (draws, samples)) < of_x_0[:, None]).sum(1)
    calls = found.network_evaluations / (draws * samples)
    return [
        {
            "method": name,
            "scalar": scalar,
            "counts": " ".join(map(str, below[:, j].bincount(minlength=samples + 1).tolist())),
            **_trust(found),
            "calls": calls,
        }
        for j, scalar in enumerate(("ink", "component 1", "component 2"))
    ]


def hidden_pixels(name: str, hidden: str, digits: int, samples: int) -> list[Row]:
    """Test digits with pixels hidden: how near the truth, how sure, and what a reader says."""
    method, steps = METHODS[name]
    images, labels = _test(digits)
    x_0 = model().space.to_model(images)
    seen = known(hidden).expand(digits, *_EVENT)
    found = draw(
        model(),
        Observation.of_reals(x_0, seen),
        samples,
        seed=7,
        method=method,
        sampler=Ancestral(steps=steps),
    )
    off = _hidden(found.samples.mean(1) - x_0, hidden)
    read = (_features(found.samples.flatten(0, 1)) @ reader()).argmax(1)
    right = (read.unflatten(0, (digits, samples)) == labels[:, None]).float().mean(1)
    scale = model().space.scale
    assert isinstance(scale, float)  # one for all pixels
    errors = off.square().mean(1).sqrt() * scale
    return [
        {
            "method": name,
            "hidden": hidden,
            "rmse": float(errors.mean()),
            "rmse_error": float(errors.std()) / math.sqrt(digits),
            "read_right": float(right.mean()),
            "truth_read_right": float(
                ((_features(x_0) @ reader()).argmax(1) == labels).float().mean()
            ),
            **_trust(found),
            "calls": found.network_evaluations / (digits * samples),
        }
    ]


def _trust(found: Posterior) -> dict[str, float]:
    """Medians over digits of what the particles say of themselves; NaN of no particles."""
    d = found.diagnostics
    evidence = [one.log_evidence for one in d if one.log_evidence is not None]
    error = [one.log_evidence_error for one in d if one.log_evidence_error is not None]
    return {
        "log_evidence": _median(evidence),
        "log_evidence_error": _median(error),
        "ancestors": float(_median([float(one.ancestors) for one in d])),
        "ess": _median([sum(one.ess) / len(one.ess) for one in d if one.ess]),
    }


def _median(values: list[float]) -> float:
    return float(torch.tensor(values).median()) if values else math.nan


@cache
def scalars(hidden: str) -> Tensor:
    """Total ink, and the first two principal components of training digits; [hidden, 3]."""
    images, _ = _train()
    x = _hidden(model().space.to_model(images[:5000]), hidden)
    _, _, axes = torch.pca_lowrank(x, q=4)
    return torch.cat((torch.ones(len(axes), 1), axes[:, :2]), 1)


@cache
def reader() -> Tensor:
    """Ridge regression of ten labels on pixels and one, [785, 10]."""
    images, labels = _train()
    x = _features(model().space.to_model(images))
    wanted = F.one_hot(labels, 10).float()
    ridge = 0.01 * len(x) * torch.eye(x.shape[1])
    found: Tensor = torch.linalg.solve(x.mT @ x + ridge, x.mT @ wanted)
    return found


def _features(x: Tensor) -> Tensor:
    return F.pad(x.flatten(1), (0, 1), value=1.0)


def _hidden(x: Tensor, hidden: str) -> Tensor:
    """The hidden pixels, [B, hidden]."""
    return x.flatten(1)[:, ~known(hidden).flatten()]


def _train() -> tuple[Tensor, Tensor]:
    return mnist.load(MnistConfig()).split("train")[:READ], mnist.labels()[0][:READ].long()


def _test(digits: int) -> tuple[Tensor, Tensor]:
    return mnist.load(MnistConfig()).split("test")[:digits], mnist.labels()[1][:digits].long()
