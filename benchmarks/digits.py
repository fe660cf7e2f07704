"""Real digits: are posteriors calibrated, and what do they make of pixels that are hidden?

Calibration is that of simulations: x_0 from the model by the same chain, y from x_0, n draws from
the posterior of y; the rank of f(x_0) among f of the draws is uniform on 0..n for any f when the
draws are the posterior's (Talts, Betancourt, Simpson, Vehtari and Gelman 2018). Distances of
histograms from flat are chi-square, sum (count - expected)^2 / expected, of n degrees.

Test digits are read by `models/mnist-classifier` at t = 0: a judge that no method here has seen.
"""

import math
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.known import Row
from diffusion.checkpoint import load
from diffusion.classifier import Classifier
from diffusion.classifier import load as load_classifier
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.observation import Observation
from diffusion.posterior import Diagnostics, Method, Product, Repaint, Twisted, sample_posterior
from diffusion.posterior.diagnostics import Summary
from diffusion.samplers import Ancestral, sample
from training.data import MnistConfig, mnist

STEPS = 50
METHODS: dict[str, tuple[Method, int]] = {
    "product": (Product(), 250),
    "repaint": (Repaint(jump=5, repeats=5), STEPS),
    "twisted, 8 particles": (Twisted(particles=8), STEPS),
    "twisted, 64 particles": (Twisted(particles=64), STEPS),
}
HIDDEN = ("right half", "central box", "90%")
_EVENT = (1, 28, 28)


@cache
def model() -> DiffusionModel:
    """models/mnist, with what its steps say worked out once."""
    found, _ = load(Path("models/mnist/model.safetensors"))
    found.eval().requires_grad_(False).tabulate()
    found.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as served
    return found


@cache
def reader() -> Classifier:
    """models/mnist-classifier."""
    found, _ = load_classifier(Path("models/mnist-classifier/model.safetensors"))
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
    found = sample_posterior(
        model(), observation, samples, seed=seed + 1, method=method, sampler=sampler
    )
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
            "calls": calls,
        }
        for j, scalar in enumerate(("ink", "component 1", "component 2"))
    ]


def hidden_pixels(name: str, hidden: str, part: int, digits: int, samples: int) -> list[Row]:
    """Test digits with pixels hidden: how near the truth, how sure, and what is read off them.

    Args:
        name: a method.
        hidden: of `known`.
        part: which of several stretches of the test set.
        digits: of each part.
        samples: posterior draws of each.
    """
    method, steps = METHODS[name]
    x_0, labels = _test(slice(part * digits, (part + 1) * digits))
    found = sample_posterior(
        model(),
        Observation.of_reals(x_0, known(hidden).expand_as(x_0)),
        samples,
        seed=7 + part,
        method=method,
        sampler=Ancestral(steps=steps),
    )
    errors, weighted = (
        _rms(mean - x_0, hidden)
        for mean in (found.samples.mean(1), Summary.of(found.samples, found.weights).mean)
    )
    read = reader().log_prob(found.samples.flatten(0, 1), torch.zeros(1, dtype=torch.int64))
    right = read.argmax(1).unflatten(0, (digits, samples)) == labels[:, None]
    return [
        {
            "method": name,
            "hidden": hidden,
            "digit": float(part * digits + i),
            "rmse": float(errors[i]),
            "rmse_weighted": float(weighted[i]),
            "read_right": float(right[i].float().mean()),
            **_told(found.diagnostics[i]),
            "calls": found.network_evaluations / (digits * samples),
        }
        for i in range(digits)
    ]


def _rms(off: Tensor, hidden: str) -> Tensor:
    """Root mean square over the hidden pixels, levels, [B]."""
    scale = model().space.scale
    assert isinstance(scale, float)  # one for all pixels
    return _hidden(off, hidden).square().mean(1).sqrt() * scale


def _told(one: Diagnostics) -> dict[str, float]:
    """What the particles say of themselves; NaN of no particles."""
    return {
        "log_evidence": math.nan if one.log_evidence is None else one.log_evidence,
        "ancestors": float(one.ancestors),
        "ess": sum(one.ess) / len(one.ess) if one.ess else math.nan,
    }


@cache
def scalars(hidden: str) -> Tensor:
    """Total ink, and the first two principal components of training digits; [hidden, 3]."""
    images = MnistConfig().load().split("train")[:5000]
    x = _hidden(model().space.to_model(images), hidden)
    _, _, axes = torch.pca_lowrank(x, q=4)
    return torch.cat((torch.ones(len(axes), 1), axes[:, :2]), 1)


def _hidden(x: Tensor, hidden: str) -> Tensor:
    """The hidden pixels, [B, hidden]."""
    return x.flatten(1)[:, ~known(hidden).flatten()]


def _test(which: slice) -> tuple[Tensor, Tensor]:
    """Test digits in model units, and their labels."""
    images = MnistConfig().load().split("test")[which]
    return model().space.to_model(images), mnist.labels()[1][which].long()
