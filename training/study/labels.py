"""Draw the figure of labels: digits, and completions of a half-hidden digit, for each label.

    p(y | observed) = Z_y / sum over y of Z_y = E[p(y | x_0) | observed],    Z_y = p(y, observed)

Each label has one system of particles of `models/mnist`, steered by the classifier of noisy digits
(`posterior.factors.Label`), which gives samples and an evidence. An evidence of hundreds of pixels
is uncertain by more nats than a label carries, so p(y | observed) is the mean over samples drawn
without a label.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from diffusion.checkpoint import load
from diffusion.classifier import Classifier
from diffusion.classifier import load as load_classifier
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.posterior import Label, Posterior, Twisted, sample_posterior
from diffusion.samplers import Ancestral
from training import data
from training.config import FitConfig, artefact_path
from training.sheet import sheet

MODEL, READER = "mnist", "mnist-classifier"


@dataclass(frozen=True)
class Drawn:
    """Posterior samples for each of K labels.

    Attributes:
        samples: [K, n, *event], data units.
        log_evidence: log p(label, observation), nats, [K].
        read: the share of each label's samples that the classifier assigns to that label, [K].
        ess: effective sample size of each label's system, the mean over steps, [K].
    """

    samples: Tensor
    log_evidence: Tensor
    read: Tensor
    ess: Tensor

    @property
    def probabilities(self) -> Tensor:
        """p(y | observed), [K]."""
        return self.log_evidence.softmax(0)


def by_label(
    model: DiffusionModel,
    reader: Classifier,
    seen: Observation,
    samples: int,
    *,
    particles: int,
    steps: int,
    seed: int = 0,
) -> Drawn:
    """Sample the posterior of one observed example given each label, one joint system per label.

    Args:
        model: of images.
        reader: the classifier of noisy images.
        seen: the observation of one example.
        samples: number of samples n per label.
        particles: number of particles per label.
        steps: of each chain.
        seed: of every draw.
    """
    y = torch.arange(len(reader.labels))
    found: Posterior = sample_posterior(
        model,
        seen.rows(torch.zeros_like(y)),
        samples,
        seed=seed,
        method=Twisted(particles=particles, systems="joint"),
        sampler=Ancestral(steps=steps),
        factors=[Label(reader, y)],
    )
    x_0 = found.samples.flatten(0, 1)
    log_p = reader.log_prob(x_0, torch.zeros(1, dtype=torch.int64))
    read = (log_p.argmax(1).unflatten(0, (len(y), samples)) == y[:, None]).double().mean(1)
    evidence = [one.log_evidence or 0.0 for one in found.diagnostics]
    pictures = model.space.to_data(x_0).unflatten(0, (len(y), samples))
    ess = torch.tensor([one.ess for one in found.diagnostics]).mean(1)
    return Drawn(pictures, torch.tensor(evidence, dtype=torch.float64), read, ess)


def read_off(
    model: DiffusionModel,
    reader: Classifier,
    seen: Observation,
    samples: int,
    *,
    particles: int,
    steps: int,
    seed: int = 0,
) -> Tensor:
    """Estimate E[p(y | x_0) | observed], [K], without labels; arguments as in `by_label`."""
    found = sample_posterior(
        model,
        seen,
        samples,
        seed=seed,
        method=Twisted(particles=particles),
        sampler=Ancestral(steps=steps),
    )
    log_p = reader.log_prob(found.samples[0], torch.zeros(1, dtype=torch.int64))
    return found.weights[0] @ log_p.exp()


def figure(
    model: DiffusionModel,
    reader: Classifier,
    digit: Tensor,
    path: Path,
    *,
    samples: int = 8,
    particles: int = 8,
    steps: int = 40,
    noise: float = 0.2,
) -> tuple[Drawn, Drawn, Tensor]:
    """Draw ten labels, then a digit whose lower half is hidden given each label.

    Args:
        model: of images.
        reader: the classifier of noisy images.
        digit: held-out, data units [1, C, H, W].
        path: of the figure.
        samples: number of samples per label.
        particles: number of particles per label, at least `samples`.
        steps: of each chain.
        noise: standard deviation of the observed half, model units.

    Returns:
        The samples given labels only, those given the observed half too, and `read_off` of it.
    """
    known = torch.zeros(digit.shape, dtype=torch.bool)
    known[..., : digit.shape[2] // 2, :] = True
    nothing = model.process.nothing_seen(model.event, 1)
    drawn = counter_noise(0, torch.zeros(1, dtype=torch.int64), 0, Stream.DATA)
    y = model.space.to_model(digit) + noise * drawn.normal(model.event)
    seen = Observation.of_reals(y, known, noise)
    free, half = (
        by_label(model, reader, what, samples, particles=particles, steps=steps)
        for what in (nothing, seen)
    )
    off = read_off(model, reader, seen, samples, particles=particles, steps=steps)
    figure = Figure(figsize=(9.0, 4.6))
    axes = figure.subplots(1, 3, width_ratios=(8, 2, 8))
    panels = (
        ("given the label", free.samples.flatten(0, 1), samples),
        ("observed", torch.where(known, model.space.to_data(y), 128.0), 1),
        ("completions given the label; p(label | observed)", half.samples.flatten(0, 1), samples),
    )
    for axis, (title, rows, columns) in zip(axes, panels, strict=True):
        axis.imshow(sheet(model.space, rows, columns), interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.set(xticks=[], yticks=[])
    side = digit.shape[2] + 2
    places = [side * (i + 0.5) for i in range(len(reader.labels))]
    axes[0].set_yticks(places, reader.labels)
    shares = zip(reader.labels, off.tolist(), strict=True)
    axes[2].set_yticks(places, [f"{name}: {share:.3f}" for name, share in shares], fontsize=8)
    figure.tight_layout(pad=0.4)
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return free, half, off


def make(models: Path, folder: Path, number: int = 9) -> list[Path]:
    """Draw the figure for test digit `number` if both artefacts exist; return its path."""
    artefact, other = artefact_path(models, MODEL), artefact_path(models, READER)
    if not (artefact.exists() and other.exists()):
        return []
    model, metadata = load(artefact)
    reader, _ = load_classifier(other)
    config = FitConfig.model_validate(metadata.training.config)
    digit = data.load(config.data).test[number : number + 1]
    path = folder / "labels.png"
    free, half, off = figure(model, reader, digit, path)
    print(f"read as asked: {_words(free.read)}; with half of it seen: {_words(half.read)}")
    print(f"log evidence: {_words(free.log_evidence)}; {_words(half.log_evidence)}")
    print(f"effective sample size: {_words(free.ess)}; {_words(half.ess)}")
    print(f"p(label | half seen), by evidence: {_words(half.probabilities)}")
    print(f"read off without a label: {_words(off)}")
    return [path]


def _words(values: Tensor) -> str:
    return " ".join(f"{value:.3f}" for value in values.tolist())
