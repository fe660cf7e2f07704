"""Posteriors on real digits: their calibration, and their reconstruction of hidden pixels.

Calibration is simulation-based: draw x_0 from the model by the same chain, y given x_0, and n draws
from the posterior given y. For any f, the rank of f(x_0) among the draws' f is uniform on 0..n if
the posterior is exact (Talts, Betancourt, Simpson, Vehtari and Gelman 2018). A histogram's distance
from uniform is chi-square, sum (count - expected)^2 / expected, with n degrees of freedom.

Test digits are classified by `models/mnist-classifier` at t = 0, which no method here uses.
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
    """Load models/mnist with its time conditions precomputed."""
    found, _ = load(Path("models/mnist/model.safetensors"))
    found.eval().requires_grad_(False).tabulate()
    found.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as served
    return found


@cache
def reader() -> Classifier:
    """Load models/mnist-classifier."""
    found, _ = load_classifier(Path("models/mnist-classifier/model.safetensors"))
    return found


def known(hidden: str) -> Tensor:
    """Return which pixels are observed, bool [1, 28, 28]."""
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
    """Count the ranks, 0..samples, of three scalars of the hidden pixels.

    Args:
        name: the method.
        hidden: as in `known`.
        part: index of the set of draws; the counts of several sets add up.
        draws: data drawn from the model.
        samples: posterior draws per example.
        steps: steps of every chain, including the data's.
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
    """Measure the error and the classification of test digits with reconstructed pixels.

    Args:
        name: the method.
        hidden: as in `known`.
        part: index of the part of the test set.
        digits: digits per part.
        samples: posterior draws per digit.
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
    """Return the root mean square over the hidden pixels, in levels, [B]."""
    scale = model().space.scale
    assert isinstance(scale, float)  # one for all pixels
    return _hidden(off, hidden).square().mean(1).sqrt() * scale


def _told(one: Diagnostics) -> dict[str, float]:
    """Return the particles' diagnostics; NaN for methods without particles."""
    return {
        "log_evidence": math.nan if one.log_evidence is None else one.log_evidence,
        "ancestors": float(one.ancestors),
        "ess": sum(one.ess) / len(one.ess) if one.ess else math.nan,
    }


@cache
def scalars(hidden: str) -> Tensor:
    """Return weights of total ink and of training digits' first two components, [hidden, 3]."""
    images = MnistConfig().load().split("train")[:5000]
    x = _hidden(model().space.to_model(images), hidden)
    _, _, axes = torch.pca_lowrank(x, q=4)
    return torch.cat((torch.ones(len(axes), 1), axes[:, :2]), 1)


def _hidden(x: Tensor, hidden: str) -> Tensor:
    """Return the hidden pixels, [B, hidden]."""
    return x.flatten(1)[:, ~known(hidden).flatten()]


def _test(which: slice) -> tuple[Tensor, Tensor]:
    """Return test digits in model units, and their labels."""
    images = MnistConfig().load().split("test")[which]
    return model().space.to_model(images), mnist.labels()[1][which].long()
