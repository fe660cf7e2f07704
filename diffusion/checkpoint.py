"""A model's artefact: one .safetensors file with the weights and everything needed to use them.

Its tensors are the model's state (`network.*`, `process.beta`, and `profile.*` if it has a
profile); its document is `Metadata`.
"""

from bisect import bisect_right
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from diffusion.artefact import (
    FORMAT,
    KEY,
    ArtefactError,
    Frozen,
    Provenance,
    read,
    restore,
    write,
)
from diffusion.calibration import Calibration, certified
from diffusion.families import AnyFamily, Family
from diffusion.likelihood.estimator import Spacing, StrataKind
from diffusion.model import DiffusionModel
from diffusion.networks import BitPatternsConfig, NetworkConfig, build
from diffusion.process import PredictionKind, ProcessConfig, VarianceKind
from diffusion.profile import ProfileConfig
from diffusion.space import Convention
from diffusion.table import AnySpace

__all__ = [
    "FORMAT",
    "KEY",
    "ArtefactError",
    "Baseline",
    "Evaluation",
    "Metadata",
    "Provenance",
    "load",
    "read_metadata",
    "rewrite",
    "save",
]


class Evaluation(Frozen):
    """A measured bound on held-out data.

    Attributes:
        convention: of the bound.
        split: of the data.
        count: number of data evaluated.
        terms: network evaluations per example; None for all steps.
        trajectories: trajectories per example (`iwae.trajectory_bound`); None for the ordinary
            bound.
        gain: by how much the bound exceeds the trajectories' average, nats.
        steps: steps of the chain; None for all T.
        spacing: spacing of those steps.
        strata: kind of strata from which the terms were drawn.
        seed: of the noise.
        bound: mean over data, nats.
        standard_error: of that mean, over data and noise, nats.
        bits: mean bound in bits per example.
        bits_per_dim: negative mean bound in bits per element.
        null: mean L_null in the same convention, nats.
        entropy: entropy of the data, nats, if known.
        machine: the machine that evaluated it.
        quantiles: 101 ascending percentiles of one example's bound, nats, or None; widened by the
            noise of the estimates.
        quantiles_count: number of data behind the percentiles; None for all `count`.
    """

    convention: Convention
    split: str
    count: int = Field(ge=1)
    terms: int | None = None
    trajectories: int | None = None
    gain: float | None = None
    steps: int | None = None
    spacing: Spacing | None = None
    strata: StrataKind = "even"
    seed: int = 0
    bound: float
    standard_error: float
    bits: float
    bits_per_dim: float
    null: float
    entropy: float | None = None
    machine: str | None = None
    quantiles: tuple[float, ...] | None = Field(None, min_length=101, max_length=101)
    quantiles_count: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _ascend(self) -> Self:
        if self.quantiles is not None and list(self.quantiles) != sorted(self.quantiles):
            raise ValueError("`quantiles` ascend from the least bound to the greatest: sort them")
        return self

    def rarer_than(self, bound: float) -> float | None:
        """Return the fraction of these data with a larger bound, interpolating the percentiles.

        Args:
            bound: of one example, nats, estimated in the same way; may be minus infinity.
        """
        if self.quantiles is None:
            return None
        above = bisect_right(self.quantiles, bound)
        if above == 0:
            return 1.0
        if above == len(self.quantiles):
            return 0.0
        low, high = self.quantiles[above - 1 : above + 1]
        return 1 - (above - 1 + (bound - low) / (high - low)) / (len(self.quantiles) - 1)

    @property
    def whole(self) -> bool:
        """Whether it is the ordinary bound of the whole chain."""
        return self.steps is None and self.trajectories is None

    @property
    def of(self) -> tuple[object, ...]:
        """The key of what was measured; a later evaluation replaces one with the same key."""
        return self.convention, self.split, self.steps, self.spacing, self.trajectories


class Baseline(Frozen):
    """A simple density fitted to the model's training rows and measured on the same `test` rows.

    Attributes:
        name: in words.
        convention: of the bounds.
        count: number of rows.
        bound: its mean log-density or log-probability, nats.
        gain: mean of the model's bound minus the density's, nats; below 0 if the density is better.
        standard_error: of the gain.
    """

    name: str
    convention: Convention
    count: int = Field(ge=2)
    bound: float
    gain: float
    standard_error: float


class Metadata(Frozen):
    """The JSON document of an artefact.

    `told` has the families of observations that a conditional network was told of in training, and
    `calibration` how the posteriors of such observations fare on held-out data.
    """

    format: Literal[1] = 1
    kind: Literal["model"] = "model"
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    process: ProcessConfig
    network: NetworkConfig
    prediction: PredictionKind
    variance: VarianceKind | None = None
    space: AnySpace
    training: Provenance
    evaluation: tuple[Evaluation, ...] = ()
    baselines: tuple[Baseline, ...] = ()
    profile: ProfileConfig | None = None
    told: tuple[AnyFamily, ...] = ()
    calibration: tuple[Calibration, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        wanted = self.process.build().output(self.prediction, self.variance).count
        if self.network.outputs != wanted:
            raise ValueError(
                f"prediction {self.prediction!r} with variance {self.variance!r} needs a network "
                f"with {wanted} outputs an element, this one has {self.network.outputs}"
            )
        reads = self.network.reads
        if reads is not None and reads != (self.prediction, self.variance):
            raise ValueError(
                f"a network of kind {self.network.kind!r} gives prediction {reads[0]!r} with "
                f"variance {reads[1]!r}, came {self.prediction!r} with {self.variance!r}"
            )
        self.network.check(self.space.event, self.process.T)
        if isinstance(self.network, BitPatternsConfig) and (
            getattr(self.process, "base_rate", None) != self.network.base_rate
        ):
            raise ValueError(
                "bit patterns need a binomial process of their own base rate "
                f"{self.network.base_rate:g}, the process is {self.process.kind} with "
                f"{getattr(self.process, 'base_rate', 'none')}"
            )
        return self

    @model_validator(mode="after")
    def _calibrated_as_told(self) -> Self:
        others = [
            each.case
            for each in self.calibration
            if each.method == "learned"
            and not any(family.includes(each.family) for family in self.told)
        ]
        if others:
            raise ValueError(
                f"`calibration` is of the families that the network was told of: {others} are of "
                "none of them"
            )
        return self

    @property
    def certified(self) -> tuple[Family, ...]:
        """The families of `told` whose posteriors held-out data confirm."""
        return certified(self.told, self.calibration)

    def build(self) -> DiffusionModel:
        """Build the model that the document describes, with fresh weights."""
        return DiffusionModel(
            self.process.build(),
            build(self.network),
            self.space,
            self.prediction,
            self.variance,
            None if self.profile is None else self.profile.build(self.process.T),
            self.certified,
            self.calibration,
        )


def save(path: Path, model: DiffusionModel, metadata: Metadata) -> None:
    """Write an artefact atomically."""
    write(path, model, metadata)


def rewrite(path: Path, metadata: Metadata) -> None:
    """Replace an artefact's document, keeping its tensors."""
    model, _ = load(path)
    save(path, model, metadata)


def read_metadata(path: Path) -> Metadata:
    """Read and validate the document of an artefact, without its tensors.

    Raises:
        ArtefactError: not a model's artefact, or not of this version.
    """
    return read(path, "model", Metadata)


def load(path: Path, device: str | torch.device = "cpu") -> tuple[DiffusionModel, Metadata]:
    """Load a model, in evaluation mode, and its document.

    Raises:
        ArtefactError: not an artefact, not of this version, or its tensors do not fit.
    """
    metadata = read_metadata(path)
    profile = metadata.profile

    def shapes() -> dict[str, Tensor]:
        found = build(metadata.network).state_dict(prefix="network.")
        if profile is not None:
            found |= profile.build(metadata.process.T).state_dict(prefix="profile.")
        return found

    model = restore(path, metadata.process, shapes, metadata.build)
    model.process.refresh()
    try:
        model.process.check_signal(model.prediction)
        if model.profile is not None:
            model.profile.check()
    except ValueError as error:
        raise ArtefactError(f"{path}: {error}: export it anew") from error
    return model.to(device).eval().requires_grad_(False), metadata
