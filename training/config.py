"""One small declared configuration a model: `training/configs/NAME.toml`, frozen once read.

What is written there decides the weights; where and how fast they are computed (device, threads,
compilation) does not belong to it and is said on the command line.
"""

import math
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from diffusion.likelihood.estimator import Choice, StrataKind
from diffusion.networks import CorrectedConfig, NetworkConfig
from diffusion.process import ProcessConfig, VarianceKind
from diffusion.profile import ProfileConfig
from diffusion.space import Convention
from training.data import AnyConfig, DataConfig

FOLDER = Path(__file__).parent / "configs"
_DATA: TypeAdapter[AnyConfig] = TypeAdapter(DataConfig)

#: The network, and its outputs' meaning, whose best readouts have a closed form.
PROJECTED = ("rbf", "x_0", "moment")


class ConfigError(ValueError):
    """A configuration that is missing or wrong; the message names the file and the fix."""


class Frozen(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ObjectiveConfig(Frozen):
    """loss = bound * (-K / dims) + simple * (square error of eps_hat; bits: cross-entropy of x_0).

    `convention` is the last step's (the terms t >= 2 do not know it); None is the data's own.
    `steps`: t drawn one by one ("uniform"), spread evenly over the batch ("stratified", Kingma et
    al. 2021), or spread evenly under p(t) proportional to sqrt(E[term_t^2]) ("importance", Nichol
    and Dhariwal 2021, Section 3.3).
    """

    bound: float = Field(default=1.0, ge=0)
    simple: float = Field(default=0.0, ge=0)
    convention: Convention | None = None
    steps: Literal["uniform", "stratified", "importance"] = "stratified"

    @model_validator(mode="after")
    def _some_weight(self) -> "ObjectiveConfig":
        if self.bound == 0 and self.simple == 0:
            raise ValueError("objective: bound and simple are both 0; give one of them a weight")
        return self


class OptimiserConfig(Frozen):
    """AdamW (Loshchilov and Hutter 2019): linear warm-up, then cosine decay to `final` * `lr`.

    At each of the steps `restarts` the decay begins anew, from half the rate of the time before
    (warm restarts, Loshchilov and Hutter 2017): a longer fit goes on where a shorter one ended.
    """

    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=100, ge=0)
    restarts: tuple[int, ...] = ()
    final: float = Field(default=0.0, ge=0, le=1)
    clip: float | None = Field(default=1.0, gt=0)

    def rate(self, step: int, steps: int) -> float:
        """Of optimiser step `step` (0, 1, ...) of `steps`; half a cosine to each restart."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        ends = [*self.restarts, steps]
        cycle = min(bisect_right(ends, step), len(ends) - 1)
        begin = ends[cycle - 1] if cycle else self.warmup
        done = (step - begin) / max(1, ends[cycle] - begin)
        cosine = 0.5 * (1.0 + math.cos(math.pi * done))
        return self.lr * 0.5**cycle * (self.final + (1.0 - self.final) * cosine)

    @model_validator(mode="after")
    def _ascend(self) -> "OptimiserConfig":
        if any(a >= b for a, b in pairwise((self.warmup, *self.restarts))):
            raise ValueError(
                f"restarts are ascending steps past the warm-up, came {list(self.restarts)}"
            )
        return self


class ScheduleConfig(Frozen):
    """A schedule learned with the network, from the process's own as its start.

    `learn`: beta_2..T, beta_1 fixed ("beta", Sohl-Dickstein et al. 2015, Section 2.4.1), or a
    falling table of log SNR ("log_snr", Kingma et al. 2021), its `ends` fixed or learned too.
    `rate` is its learning rate as a multiple of the network's.
    """

    learn: Literal["beta", "log_snr"]
    ends: Literal["fixed", "learned"] = "fixed"
    rate: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> "ScheduleConfig":
        if self.learn == "beta" and self.ends != "fixed":
            raise ValueError(
                "schedule: beta_1 is fixed where beta is learned: leave out ends = 'learned', or "
                "write learn = 'log_snr'"
            )
        return self


class ProjectionConfig(Frozen):
    """A fit by variable projection, in place of AdamW: `training.fit.loop.projection` tells how.

    `steps` of the search are made on the same `batch` rows; the readouts are those of `rows` rows.
    """

    rows: int = Field(default=20_000, gt=0)


class AverageConfig(Frozen):
    """Moving average of the weights, of decay min(`decay`, (1 + n) / (10 + n)) at update n."""

    decay: float = Field(default=0.999, ge=0, lt=1)


class StoppingConfig(Frozen):
    """Keep the averaged weights of the greatest held-out bound, and stop when it has turned.

    The bound is that of `watch`; the fit ends after `patience` looks without a better one.
    """

    patience: int = Field(default=10, gt=0)


class BaseConfig(Frozen):
    """How the base of a "corrected" network is fitted, as `densities.Choice` says.

    The network's base has `starts` times as many components as a start.
    """

    starts: int = Field(default=1, gt=0)
    shrunk: bool = False


class WatchConfig(Frozen):
    """What is looked at, `every` so many steps: `data` rows of valid at `terms` steps each.

    A sheet of `samples` is drawn each time, or every `sheets` steps, a multiple of `every`.
    """

    every: int = Field(default=500, gt=0)
    sheets: int | None = Field(default=None, gt=0)
    data: int = Field(default=256, gt=0)
    terms: int = Field(default=16, gt=0)
    samples: int = Field(default=64, gt=0)
    sampler_steps: int = Field(default=50, gt=0)


class EvaluationConfig(Frozen):
    """The held-out bound that the card reports.

    `terms` steps an example, None for all of them, of even strata or by importance. `sampler_steps`
    of the sheet of samples beside it, None for all T.
    """

    conventions: tuple[Convention, ...] = ()
    data: int | None = Field(default=None, gt=0)
    terms: int | None = Field(default=None, gt=0)
    strata: StrataKind = "even"
    sampler_steps: int | None = Field(default=None, gt=0)
    seed: int = Field(default=1, ge=0)

    @property
    def choice(self) -> Choice:
        """As `bound` takes it."""
        return Choice(terms=self.terms, strata=self.strata)


class FitConfig(Frozen):
    """Everything that decides the weights of one model, and how it is measured.

    `steps` optimiser steps of `batch` rows, the whole batch over all ranks. With variance "optimal"
    the fit's is "lower", and export reads the other from the profile it makes. `file` is what the
    commands call it, "gpu/mnist" for training/configs/gpu/mnist.toml, whose `name` is "mnist".
    `initial` names the artefact whose weights it starts from, a folder of models/ or a file.
    """

    name: str
    file: str | None = None
    title: str
    data: DataConfig
    process: ProcessConfig
    network: NetworkConfig
    prediction: Literal["eps", "x_0", "v", "perturbation"]
    variance: VarianceKind | None = None
    initial: str | None = None
    schedule: ScheduleConfig | None = None
    projection: ProjectionConfig | None = None
    base: BaseConfig = BaseConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    average: AverageConfig = AverageConfig()
    batch: int = Field(gt=0)
    steps: int = Field(gt=0)
    seed: int = Field(default=0, ge=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    stopping: StoppingConfig | None = None
    watch: WatchConfig = WatchConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()

    @property
    def called(self) -> str:
        """What `python -m training fit` calls it; its run folder is runs/ and that."""
        return self.file or self.name

    @property
    def fitted_variance(self) -> VarianceKind | None:
        """The variance while fitting."""
        return "lower" if self.variance == "optimal" else self.variance

    @model_validator(mode="after")
    def _projects_what_can_be(self) -> "FitConfig":
        kinds = (self.network.kind, self.prediction, self.variance)
        if self.projection is not None and kinds != PROJECTED:
            raise ValueError(
                "a projection is known of a network, prediction and variance of kinds "
                f"{PROJECTED}, came {kinds}: leave out [projection]"
            )
        if self.projection is not None and self.schedule is not None:
            raise ValueError(
                "a projection keeps the schedule: leave out [projection] or [schedule]"
            )
        return self

    @model_validator(mode="after")
    def _starts_fit(self) -> "FitConfig":
        network, starts = self.network, self.base.starts
        if isinstance(network, CorrectedConfig) and network.base.components % starts:
            raise ValueError(
                f"the components of a base are a multiple of its starts ({starts}), came "
                f"{network.base.components}"
            )
        return self

    @model_validator(mode="after")
    def _stops_what_it_can(self) -> "FitConfig":
        if self.stopping is not None and (self.schedule or self.projection):
            raise ValueError(
                "the best weights are kept of a network alone: leave out [stopping], or [schedule] "
                "and [projection]"
            )
        return self

    @model_validator(mode="after")
    def _learns_what_can_be(self) -> "FitConfig":
        if self.schedule is None:
            return self
        if self.process.kind != "gaussian":
            raise ValueError(
                "a schedule is learned through x_t, and bits have no gradient: leave out "
                f"[schedule] with a process of kind {self.process.kind!r}"
            )
        if self.objective.simple:
            raise ValueError(
                "a schedule is learned on the bound: the simple error of a step can always be made "
                f"small by the step, so write objective.simple = 0, not {self.objective.simple:g}"
            )
        return self


class ConvertedConfig(Frozen):
    """The source of a converted artefact, in the place of a fit's configuration.

    Attributes:
        title: of the card.
        library: that trained it.
        command: that converts it again.
        files: sha256 of each file that was read, by its name within the source.
        documents: the source's own settings, by file, or the flags that were given.
        notes: what the source says of its sampler, and this artefact does not hold.
        data: what it is measured on; None where nothing was given.
        evaluation: how.
        profile: likewise, by `python -m training profile`.
    """

    kind: Literal["converted"] = "converted"
    title: str
    library: Literal["diffusers", "openai"]
    command: str
    files: dict[str, str]
    documents: dict[str, dict[str, Any]]
    notes: tuple[str, ...] = ()
    data: DataConfig | None = None
    evaluation: EvaluationConfig = EvaluationConfig()
    profile: ProfileConfig = ProfileConfig()


def is_converted(config: Mapping[str, Any]) -> bool:
    """Whether an artefact's configuration is that of a conversion."""
    return config.get("kind") == "converted"


def artefact_path(models: Path, name: str) -> Path:
    """Where the artefact of a model is: models/NAME/model.safetensors."""
    return models / name / "model.safetensors"


def find_artefact(name: str, models: Path) -> Path:
    """The artefact that `name` means: a path, or the name of a folder of `models`."""
    return Path(name) if name.endswith(".safetensors") else artefact_path(models, name)


def path_of(name: str) -> Path:
    """The file that `name` means: of training/configs, or itself a path."""
    return Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"


def read(name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The keys of one configuration, by the name of a file in training/configs or by a path."""
    path = path_of(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.toml")))
        raise ConfigError(
            f"no configuration {path}; give one of {known}, or the path of a .toml file"
        )
    keys = parse(path.read_text(), str(path))
    return {"name": path.stem, **keys, **(overrides or {})}


def parse(text: str, where: str) -> dict[str, Any]:
    """The keys of a TOML text; ConfigError names where it came from."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is no TOML: {error}") from error


def read_data(keys: Mapping[str, Any]) -> AnyConfig:
    """The [data] of a configuration alone; ConfigError where its keys do not fit."""
    try:
        return _DATA.validate_python(keys)
    except ValidationError as error:
        raise ConfigError(f"[data]: {error}") from error


def completed(keys: dict[str, Any]) -> dict[str, Any]:
    """A configuration that a version before this one wrote: what was added since at its default."""
    try:
        return FitConfig.model_validate(keys).model_dump(mode="json")
    except ValidationError:
        return keys  # it says something that this version does not know


def load(name: str, overrides: Mapping[str, Any] | None = None) -> FitConfig:
    """The configuration of a fit.

    Args:
        name: `mnist` for training/configs/mnist.toml, or the path of a .toml file.
        overrides: top-level keys that replace the file's.

    Raises:
        ConfigError: no such file, no TOML, or keys and values that do not fit.
    """
    path, keys = path_of(name), read(name, overrides)
    if path.parent.parent == FOLDER:  # a folder of its own sizes; elsewhere the name says it all
        keys["file"] = f"{path.parent.name}/{path.stem}"
    try:
        return FitConfig.model_validate(keys)
    except ValidationError as error:
        raise ConfigError(f"configuration {name}: {error}") from error
