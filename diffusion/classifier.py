"""A classifier of noisy data, p(y | x_t, t): which of K labels x_0 had, as far as x_t says.

    p(y | x_t) = softmax(network(x_t, t))_y,    t = 0..T

At t = 0 it reads data. As a factor r(x_0) = p(y | x_0) of a posterior (Sohl-Dickstein et al. 2015,
Section 2.5) it gives the whole path at once: r_t(x_t) = E[p(y | x_0) | x_t] = p(y | x_t), under the
process it was fitted under and no other. It is an artefact of its own kind, which stores that
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
from diffusion.space import DataSpace


class Reading(Frozen):
    """How well a classifier predicts the labels of held-out data at one t.

    Attributes:
        split: of the data.
        t: of the noise; 0 for none.
        log_snr: there, nats; None at t = 0.
        count: examples.
        accuracy: share whose likeliest label is the true one.
        standard_error: of that share.
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
    space: DataSpace
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
        self.network.check(self.space.shape, self.process.T)
        return self

    def build(self) -> "Classifier":
        """The classifier that the document describes, with fresh weights."""
        return Classifier(self.process.build(), Encoder(self.network), self.space, self.labels)


@final
class Classifier(nn.Module):
    """p(y | x_t, t).

    Args:
        process: the forward process that makes x_t.
        network: [B, *event] and its clock's time [B] to logits [B, K].
        space: what an example is.
        labels: the K names, in the order of the logits.
    """

    def __init__(
        self, process: Process, network: Network, space: DataSpace, labels: Sequence[str]
    ) -> None:
        super().__init__()
        self.process, self.network, self.space = process, network, space
        self.labels = tuple(labels)

    def log_prob(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(y | x_t) of every y, nats, float64 [B, K].

        Args:
            x_t: [B, *event], model units; its gradient passes.
            t: int64 [B], or [1] for all rows; 0..T.
        """
        snr = self.network.clock == "log_snr"
        time = self.process.log_snr(t).float() if snr else (t - 1).float()
        logits: Tensor = self.network(x_t, time.expand(len(x_t)))
        return logits.double().log_softmax(1)

    def check(self, process: Process, space: DataSpace) -> None:
        """Raise ValueError unless the classifier reads data of this process and space."""
        same_process(self.process, process, "this classifier was fitted")
        if not self.space.agrees(space):
            raise ValueError(
                f"this classifier reads data of space {self.space!r}, the model gives {space!r}: "
                "fit one to the model's own data"
            )


def same_process(ours: Process, theirs: Process, who: str) -> None:
    """Raise ValueError unless x_t is the same under both.

    Args:
        ours: of what is joined to a model.
        theirs: the model's.
        who: of the message, "... under another process".
    """
    rates = [getattr(process, "base_rate", None) for process in (ours, theirs)]
    same = type(ours) is type(theirs) and ours.T == theirs.T and rates[0] == rates[1]
    if same and torch.allclose(
        ours.alpha_bar, theirs.alpha_bar.to(ours.alpha_bar.device), rtol=1e-5, atol=1e-12
    ):
        return
    raise ValueError(
        f"{who} under another process ({_words(ours)}) than the model's ({_words(theirs)}): x_t "
        "means something else there; join only what has the model's own process"
    )


def _words(process: Process) -> str:
    ends = ", ".join(f"{float(process.log_snr(torch.tensor(t))):.4g}" for t in (1, process.T))
    rate = getattr(process, "base_rate", None)
    base = "" if rate is None else f", base rate {rate:g}"
    return f"{type(process).__name__}, T = {process.T}, log SNR {ends} at its ends{base}"


def save(path: Path, classifier: Classifier, metadata: ClassifierMetadata) -> None:
    """Write an artefact; the file appears whole or not at all."""
    write(path, classifier, metadata)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[Classifier, ClassifierMetadata]:
    """The classifier, in evaluation mode, and its document.

    Raises:
        ArtefactError: not a classifier's artefact, or tensors that do not fit it.
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
