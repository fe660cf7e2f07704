"""A classifier of noisy data, which predicts the label y of x_0 from x_t among K labels.

    p(y | x_t) = softmax(network(x_t, t))_y,    t = 0..T

At t = 0 it classifies clean data. As a factor r(x_0) = p(y | x_0) of a posterior (Sohl-Dickstein et
al. 2015, Section 2.5) it gives r_t(x_t) = E[p(y | x_0) | x_t] = p(y | x_t) for the whole path, but
only under the process it was trained with. It is stored as its own kind of artefact, with that
process.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffusion.artefact import (
    Frozen,
    Provenance,
    read,
    restore,
    write,
)
from diffusion.networks import Network
from diffusion.networks.encoder import Encoder, EncoderConfig
from diffusion.process import Process, ProcessConfig
from diffusion.space import Space
from diffusion.table import AnySpace


class Reading(Frozen):
    """How well a classifier predicts the labels of held-out data at one t.

    Attributes:
        split: of the data.
        t: noise level; 0 for none.
        log_snr: log-SNR at t, nats; None at t = 0.
        count: number of examples.
        accuracy: fraction whose most likely label is the true one.
        standard_error: of the accuracy.
        cross_entropy: mean of -log p(true label), nats.
        calibration_error: mean over data of |confidence - accuracy| in 15 bins of confidence
            (Guo, Pleiss, Sun and Weinberger 2017, Equation 3).
    """

    split: str
    t: int = Field(ge=0)
    log_snr: float | None
    count: int = Field(ge=1)
    accuracy: float = Field(ge=0, le=1)
    standard_error: float = Field(ge=0)
    cross_entropy: float = Field(ge=0)
    calibration_error: float = Field(ge=0, le=1)


class ClassifierMetadata(Frozen):
    """The JSON document of a classifier's artefact."""

    format: Literal[1] = 1
    kind: Literal["classifier"] = "classifier"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    process: ProcessConfig
    network: EncoderConfig
    space: AnySpace
    labels: tuple[str, ...]
    training: Provenance
    evaluation: tuple[Reading, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(set(self.labels)) != self.network.labels:
            raise ValueError(
                f"a network of {self.network.labels} labels needs as many names, each its own; "
                f"came {list(self.labels)}"
            )
        self.network.check(self.space.event, self.process.T)
        return self

    def build(self) -> "Classifier":
        """Build the classifier that the document describes, with fresh weights."""
        return Classifier(self.process.build(), Encoder(self.network), self.space, self.labels)


@final
class Classifier(nn.Module):
    """A classifier p(y | x_t, t).

    Args:
        process: the forward process that produces x_t.
        network: maps [B, *event] and its clock's time [B] to logits [B, K].
        space: the space of an example.
        labels: the K names, in the order of the logits.
    """

    def __init__(
        self, process: Process, network: Network, space: Space, labels: Sequence[str]
    ) -> None:
        super().__init__()
        self.process, self.network, self.space = process, network, space
        self.labels = tuple(labels)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """Return log p(y | x_t) for every y, nats, float64 [B, K]; differentiable in x_t.

        Args:
            x_t: [B, *event], model units.
            t: int64 [B], or [1] for all rows; 0..T.
        """
        snr = self.network.clock == "log_snr"
        time = self.process.log_snr(t).float() if snr else (t - 1).float()
        logits: Tensor = self.network(x_t, time.expand(len(x_t)))
        return logits.double().log_softmax(1)

    def check(self, process: Process, space: Space) -> None:
        """Raise ValueError unless the classifier fits this process and space."""
        same_process(self.process, process, "this classifier was fitted")
        if not self.space.agrees(space):
            raise ValueError(
                f"this classifier reads data of space {self.space!r}, the model gives {space!r}: "
                "fit one to the model's own data"
            )


def same_process(ours: Process, theirs: Process, who: str) -> None:
    """Raise ValueError unless x_t has the same distribution under both processes.

    Args:
        ours: the process of what is combined with a model.
        theirs: the model's process.
        who: subject of the message "... under another process".
    """
    rates = [getattr(process, "base_rate", None) for process in (ours, theirs)]
    same = type(ours) is type(theirs) and ours.T == theirs.T and rates[0] == rates[1]
    if same and torch.allclose(
        ours.alpha_bar, theirs.alpha_bar.to(ours.alpha_bar.device), rtol=1e-5, atol=1e-12
    ):
        return
    raise ValueError(
        f"{who} under another process ({_words(ours)}) than the model's ({_words(theirs)}): x_t "
        "has another meaning there; use one with the model's own process"
    )


def _words(process: Process) -> str:
    ends = ", ".join(f"{float(process.log_snr(torch.tensor(t))):.4g}" for t in (1, process.T))
    rate = getattr(process, "base_rate", None)
    base = "" if rate is None else f", base rate {rate:g}"
    return f"{type(process).__name__}, T = {process.T}, log SNR {ends} at its ends{base}"


def save(path: Path, classifier: Classifier, metadata: ClassifierMetadata) -> None:
    """Write an artefact atomically."""
    write(path, classifier, metadata)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[Classifier, ClassifierMetadata]:
    """Load a classifier, in evaluation mode, and its document.

    Raises:
        ArtefactError: not a classifier's artefact, or its tensors do not fit.
    """
    metadata = read(path, "classifier", ClassifierMetadata)
    classifier = restore(
        path,
        metadata.process,
        lambda: Encoder(metadata.network).state_dict(prefix="network."),
        metadata.build,
    )
    classifier.process.refresh()
    return classifier.to(device).eval().requires_grad_(False), metadata
