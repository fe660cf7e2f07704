"""Fit, measure and export classifiers of noisy data.

    loss = -log p(y | x_t, t),    t spread evenly over 1..T, and a share of the batch at t = 0

The loss is minimised by the true p(y | x_t). A step is a pure function of (seed, step), as in
`training.fit.loop`.
"""

import math
import time
from pathlib import Path

import torch
from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion.artefact import Provenance
from diffusion.classifier import Classifier, ClassifierMetadata, Reading, load, save
from diffusion.networks.encoder import Encoder, EncoderConfig
from diffusion.noise import Stream, counter_noise
from diffusion.process import ProcessConfig
from training import data
from training.config import AverageConfig, ConfigError, Frozen, OptimiserConfig, artefact_path, read
from training.data import mnist
from training.data.dataset import stream_seed
from training.data.mnist import MnistConfig
from training.export.card import settings
from training.fit.batches import Batches, Steps
from training.fit.weights import Average
from training.progress import progress_bar
from training.provenance import commit, versions

#: Times at which a classifier is measured besides t = 0, as fractions of T.
_TIMES = tuple(i / 10 for i in range(1, 11))
_ROWS = 2000
_BINS = 15


class ClassifierConfig(Frozen):
    """Everything that decides the weights of one classifier.

    `clean` is the share of a batch taken at t = 0, without noise.
    """

    name: str
    title: str
    data: MnistConfig
    process: ProcessConfig
    network: EncoderConfig
    optimiser: OptimiserConfig = OptimiserConfig()
    average: AverageConfig = AverageConfig()
    batch: int = Field(gt=0)
    steps: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)
    clean: float = Field(default=0.1, ge=0, le=1)


def is_classifier(name: str) -> bool:
    """Whether a configuration describes a classifier."""
    return bool(read(name).get("network", {}).get("kind") == "encoder")


def load_config(name: str) -> ClassifierConfig:
    """Load the configuration of a classifier.

    Raises:
        ConfigError: no such file, invalid TOML, or keys and values that do not fit.
    """
    try:
        return ClassifierConfig.model_validate(read(name))
    except ValidationError as error:
        raise ConfigError(f"configuration {name}: {error}") from error


def fit(config: ClassifierConfig, x_0: Tensor, y: Tensor, classifier: Classifier) -> Classifier:
    """Fit a classifier and return a copy with the averaged weights, in evaluation mode.

    Args:
        config: how it is fitted.
        x_0: data units [N, *event].
        y: their labels, int64 [N].
        classifier: has fresh weights, which are fitted in place.
    """
    averaged = build(config, classifier)
    average = Average(classifier.network, averaged.network, config.average.decay)
    settings = config.optimiser
    parameters = list(classifier.network.parameters())
    optimiser = torch.optim.AdamW(
        parameters, lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
    )
    batches = Batches(len(x_0), config.batch, config.seed)
    times = Steps(classifier.process.T, "stratified", config.seed)
    place, clean = torch.arange(config.batch), round(config.clean * config.batch)
    classifier.train()
    with progress_bar(config.steps, "step", config.name) as bar:
        for step in range(config.steps):
            rows = batches.at(step)
            t = times.draw(step, config.batch)[0]
            # Rotate which rows are clean, because t ascends within the batch.
            t = torch.where((place + step) % config.batch < clean, 0, t)
            noise = counter_noise(config.seed, place, step, Stream.TRAINING)
            x = classifier.space.to_model(x_0[rows])
            x_t = classifier.process.marginal(x, t).sample(noise)
            torch.manual_seed(stream_seed(config.seed, "dropout", step))
            for group in optimiser.param_groups:
                group["lr"] = config.optimiser.rate(step, config.steps)
            loss = F.nll_loss(classifier.log_prob(x_t, t), y[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, settings.clip or math.inf)
            optimiser.step()
            average.update(step)
            bar.set_postfix(nats=f"{float(loss.detach()):.3f}", refresh=False)
            bar.update(1)
    return averaged.eval().requires_grad_(False)


def build(config: ClassifierConfig, like: Classifier | None = None) -> Classifier:
    """Build a classifier with weights drawn from the seed, or copied from `like`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, "weights", 0))
        network = Encoder(config.network)
    labels = tuple(str(label) for label in range(config.network.labels))
    space = data.load(config.data).space if like is None else like.space
    made = Classifier(config.process.build(), network, space, labels)
    if like is not None:
        made.load_state_dict(like.state_dict())
    return made


@torch.no_grad()
def measure(
    classifier: Classifier, x_0: Tensor, y: Tensor, split: str, *, seed: int = 1, batch: int = 500
) -> tuple[Reading, ...]:
    """Measure accuracy on held-out data: all rows at t = 0, the first _ROWS at ten other times.

    Args:
        classifier: in evaluation mode.
        x_0: data units [N, *event].
        y: their labels, int64 [N].
        split: the name of their split.
        seed: of the noise.
        batch: rows per network call.
    """
    found = []
    process, space = classifier.process, classifier.space
    for t in sorted({0, *(round(share * process.T) for share in _TIMES)}):
        parts, count = [], min(len(x_0), _ROWS) if t else len(x_0)
        for rows in torch.arange(count).split(batch):
            at, noise = torch.full_like(rows, t), counter_noise(seed, rows, t, Stream.TERM)
            x = space.to_model(x_0[rows])
            x_t = process.marginal(x, at).sample(noise) if t else x
            parts.append(classifier.log_prob(x_t, at))
        log_p = torch.cat(parts)
        confidence, said = log_p.exp().max(1)
        right = (said == y[:count]).double()
        accuracy = float(right.mean())
        found.append(
            Reading(
                split=split,
                t=t,
                log_snr=float(process.log_snr(torch.tensor(t))) if t else None,
                count=count,
                accuracy=accuracy,
                standard_error=math.sqrt(accuracy * (1 - accuracy) / count),
                cross_entropy=float(F.nll_loss(log_p, y[:count])),
                calibration_error=calibration_error(confidence, right),
            )
        )
    return tuple(found)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Compute the expected calibration error in bins of equal width.

        sum over bins of (share of data) |mean confidence - accuracy|

    Args:
        confidence: probability of the predicted label, [N].
        right: 1 where the prediction is correct, else 0, [N].
    """
    place = (confidence * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.float64).index_add_(
        0, place, confidence.double() - right.double()
    )
    return float(gaps.abs().sum()) / len(right)


def make(name: str, models: Path) -> Path:
    """Fit, measure and write models/NAME from a configuration; return the artefact's path."""
    config = load_config(name)
    dataset = data.load(config.data)
    train, test = (labels.long() for labels in mnist.labels())
    began, code = time.monotonic(), commit()
    rows = len(dataset.train)
    fitted = fit(config, dataset.train, train[:rows], build(config))
    metadata = ClassifierMetadata(
        name=config.name,
        process=config.process,
        network=config.network,
        space=dataset.space,
        labels=fitted.labels,
        training=Provenance(
            data=config.data.kind,
            checksum=dataset.checksum,
            steps=config.steps,
            seed=config.seed,
            commit=code,
            versions=versions(),
            seconds=time.monotonic() - began,
            device=f"cpu, {torch.get_num_threads()} threads",
            config=config.model_dump(mode="json"),
        ),
        evaluation=measure(fitted, dataset.test, test, "test"),
    )
    path = artefact_path(models, config.name)
    save(path, fitted, metadata)
    write_card(path)
    return path


def write_card(path: Path) -> None:
    """Write the card beside a classifier's artefact."""
    classifier, metadata = load(path)
    path.with_name("README.md").write_text(card(metadata, classifier))


def card(metadata: ClassifierMetadata, classifier: Classifier) -> str:
    """Format the model card as Markdown."""
    training, process = metadata.training, metadata.process
    weights = sum(parameter.numel() for parameter in classifier.parameters())
    facts = {
        "kind": "classifier p(y \\| x_t, t); it draws nothing of its own",
        "labels": ", ".join(metadata.labels),
        "data": f"{metadata.space.kind}, shape {list(metadata.space.shape)}",
        "process": f"{process.kind}, T = {process.T}, {settings(process.schedule)}",
        "network": settings(metadata.network),
        "weights": f"{weights:,}",
        "trained on": f"{training.data} ({training.checksum}), the rows of `train`",
        "training": f"{training.steps:,} steps of {training.config['batch']} rows, "
        f"{(training.seconds or 0) / 60:.0f} minutes",
        "on": training.device,
        "seed": training.seed,
        "code": training.commit or "uncommitted",
        "libraries": ", ".join(f"{k} {v}" for k, v in sorted(training.versions.items())),
    }
    lines = [f"# {metadata.name}: {training.config['title']}", "", "| | |", "|---|---|"]
    lines += [f"| {key} | {value} |" for key, value in facts.items()]
    lines += ["", "## Evaluation", "", table(metadata.evaluation), ""]
    lines += [
        "Of held-out data, each read once at each t; log SNR is log(alpha_bar / (1 - alpha_bar)).",
        "The calibration error is the mean gap between confidence and accuracy, in 15 bins.",
        "",
        "## To remake it",
        "",
        "```",
        f"python -m training classifier {metadata.name}",
        "```",
        "",
    ]
    return "\n".join(lines)


def table(readings: tuple[Reading, ...]) -> str:
    """Format the measurements as a Markdown table."""
    lines = ["| t | log SNR | split | data | accuracy | cross-entropy (nats) | calibration error |"]
    lines.append("|---|---|---|---|---|---|---|")
    for one in readings:
        snr = "no noise" if one.log_snr is None else f"{one.log_snr:.2f}"
        accuracy = f"{one.accuracy:.2%} ± {one.standard_error:.2%}"
        lines.append(
            f"| {one.t} | {snr} | {one.split} | {one.count} | {accuracy} | "
            f"{one.cross_entropy:.4f} | {one.calibration_error:.4f} |"
        )
    return "\n".join(lines)
